"""The causal backbone against its equations, written out one token and one head at a time."""

import torch
import torch.nn.functional as F

from tests.model.tiny import model, recipe


def written_out(of, tokens, order, condition):
    """z of every token of one image, by the description in the module's docstring."""
    places = order.tolist()
    inputs = [condition + of.start_position[0, 0]]
    inputs += [of.token_embed(tokens[k]) + of.own_position[0, places[k]] for k in range(len(places) - 1)]
    x = torch.stack([each + of.next_position[0, place] for each, place in zip(inputs, places, strict=True)])
    x = of.embed_norm(x)
    for block in of.blocks:
        q, k, v = block.attn.qkv(block.norm1(x)).chunk(3, dim=-1)
        heads = []
        for part in torch.arange(of.width).chunk(of.heads):
            likeness = q[:, part] @ k[:, part].T / len(part) ** 0.5
            likeness = likeness.masked_fill(torch.ones_like(likeness).triu(1).bool(), -torch.inf)
            heads.append(likeness.softmax(-1) @ v[:, part])
        x = x + block.attn.proj(torch.cat(heads, dim=-1))
        x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
    return of.norm(x) + of.z_position[0, order]


@torch.inference_mode()
def test_every_embedding_acts_as_described():
    whole = model(recipe("causal", "random", "diffusion"))
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randn(2, 16, 4, generator=generator)
    order = torch.stack([torch.randperm(16, generator=generator) for _ in range(2)])
    condition = whole.condition(torch.tensor([3, 8]))
    expected = torch.stack([written_out(whole.backbone, *each) for each in zip(tokens, order, condition, strict=True)])
    z = whole.backbone(tokens, order, condition, 0)
    assert (z - expected).abs().max() <= 1e-5 * expected.abs().max()
    for known in (0, 1, 9, 15):
        one = whole.backbone.predict(tokens[:, :known], order, condition, num_wanted=1)
        assert (one[:, 0] - expected[:, known]).abs().max() <= 1e-5 * expected.abs().max()
