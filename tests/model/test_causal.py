"""A causal backbone never looks ahead, and a cache changes nothing but the time."""

import pytest
import torch
import torch.nn.functional as F

from tests.model import tiny


@pytest.fixture(params=["raster", "random"])
def causal(request):
    recipe = tiny.recipe("causal", request.param, "diffusion")
    model = tiny.model(recipe)
    generator = torch.Generator().manual_seed(3)
    order = torch.stack([model.draw_order(generator) for _ in range(3)])
    return model, torch.randn(3, 16, 4, generator=generator), order, model.condition(torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("k", [0, 5, 14])
def test_changing_token_k_leaves_what_comes_before_bit_equal(causal, k):
    model, tokens, order, condition = causal
    before = model.backbone(tokens, order, condition, 0)
    changed = tokens.clone()
    changed[:, k] += 1.0
    after = model.backbone(changed, order, condition, 0)
    assert torch.equal(before[:, : k + 1], after[:, : k + 1])
    assert not torch.equal(before[:, k + 1 :], after[:, k + 1 :])


def test_teacher_forcing_equals_step_by_step_with_and_without_cache(causal):
    model, tokens, order, condition = causal
    forced = model.backbone(tokens, order, condition, 0)
    cache = model.backbone.new_cache(3, like=condition)
    for k in range(16):
        for kept in (None, cache):
            z = model.backbone.predict(tokens[:, :k], order, condition, num_wanted=1, cache=kept)
            assert (z[:, 0] - forced[:, k]).abs().max() <= 1e-5 * forced.abs().max()
    assert all(layer.length == 16 for layer in cache)


def test_a_cache_filled_by_several_tokens_at_once_is_causal_too(causal):
    model, tokens, order, condition = causal
    cache = model.backbone.new_cache(3, like=condition)
    z = model.backbone.predict(tokens[:, :5], order, condition, num_wanted=1, cache=cache)
    assert torch.allclose(z, model.backbone(tokens, order, condition, 0)[:, 5:6], atol=1e-5)
    z = model.backbone.predict(tokens[:, :9], order, condition, num_wanted=1, cache=cache)
    assert torch.allclose(z, model.backbone(tokens, order, condition, 0)[:, 9:10], atol=1e-5)


def test_random_order_tells_the_network_which_place_comes_next(causal):
    model, tokens, order, condition = causal
    other = order.clone()
    other[:, [4, 9]] = other[:, [9, 4]]
    z, z_other = (model.backbone(tokens, o, condition, 0) for o in (order, other))
    assert torch.equal(z[:, :4], z_other[:, :4])
    assert not torch.allclose(z[:, 4], z_other[:, 4])


def test_several_tokens_per_step_are_refused(causal):
    model, tokens, order, condition = causal
    with pytest.raises(ValueError, match="one token per step"):
        model.backbone.predict(tokens[:, :2], order, condition, num_wanted=2, cache=None)


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
    whole = tiny.model(tiny.recipe("causal", "random", "diffusion"))
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
