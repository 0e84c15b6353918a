"""The backbones with packed weights and fused activations; what they compute is the plain backbones' code."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from marcli.model.backbone.causal import CausalBackbone
from marcli.model.backbone.masked import MaskedBackbone
from marcli.model.layers.attention import KeyValueCache, causal_mask
from marcli.model.layers.block import Block
from marcli.sampling.engine.attention import attend
from marcli.sampling.engine.convert import Convert, unchanged, without
from marcli.sampling.engine.linear import PackedLinear, packed


class FastMaskedBackbone(MaskedBackbone):
    """A `MaskedBackbone` over faster blocks."""

    def __init__(self, backbone: MaskedBackbone, convert: Convert = unchanged) -> None:
        self.__dict__.update(convert(without(backbone, "encoder", "decoder")).__dict__)
        self.decoder_embed = packed(self.decoder_embed, pack=worth_packing(self.mask_token))
        # One block after the other, so that at most one is there both converted and packed.
        self.encoder = nn.ModuleList(FastBlock(convert(block)) for block in backbone.encoder)
        self.decoder = nn.ModuleList(FastBlock(convert(block)) for block in backbone.decoder[:-1])
        self.decoder.append(LastBlock(convert(backbone.decoder[-1])))


class FastCausalBackbone(CausalBackbone):
    """A `CausalBackbone` over faster blocks."""

    def __init__(self, backbone: CausalBackbone, convert: Convert = unchanged) -> None:
        self.__dict__.update(convert(without(backbone, "blocks")).__dict__)
        self.blocks = nn.ModuleList(FastBlock(convert(block)) for block in backbone.blocks)

    def run_blocks(self, x: Tensor, cache: list[KeyValueCache] | None) -> Tensor:
        """The stack, causal."""
        for layer, block in enumerate(self.blocks):
            q, k, v = block.queries_keys_values(x)
            if cache is not None:
                k, v = cache[layer].append(k, v)
            x = block.rest(x, q, k, v, causal_mask(q, k))
        return x


def worth_packing(parameter: Tensor) -> bool:
    """At hundreds of rows fp32 gains too little for one more copy of all weights."""
    return parameter.dtype == torch.bfloat16


class FastBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        pack = worth_packing(block.attn.proj.weight)
        self.heads = block.attn.heads
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.qkv = packed(block.attn.qkv, pack=pack)
        self.proj = packed(block.attn.proj, pack=pack)
        self.fc1 = packed(block.mlp.fc1, activation="gelu", pack=pack)
        self.fc2 = packed(block.mlp.fc2, pack=pack)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        return self.rest(x, *self.queries_keys_values(x))

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, ...]:
        """Three tensors [batch, heads, n, width / heads]."""
        return self.heads_of(self.qkv(self.norm1(x)), 3)

    def heads_of(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[batch, n, parts * width] to `parts` tensors [batch, heads, n, width / heads]."""
        return x.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def rest(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Everything behind queries, keys and values."""
        x = x + self.proj(attend(q, k, v, mask).transpose(1, 2).flatten(2))
        return x + self.fc2(self.fc1(self.norm2(x)))


class LastBlock(FastBlock):
    """A block computed for some tokens of a context."""

    def __init__(self, block: Block) -> None:
        super().__init__(block)
        weight, bias, width = block.attn.qkv.weight, block.attn.qkv.bias, block.attn.proj.in_features
        pack = worth_packing(weight)
        self.q = PackedLinear(weight[:width], bias[:width], activation="none", pack=pack)
        self.kv = PackedLinear(weight[width:], bias[width:], activation="none", pack=pack)
        del self.qkv

    def forward(
        self, x: Float[Tensor, "batch queries width"], *, context: Float[Tensor, "batch keys width"]
    ) -> Float[Tensor, "batch queries width"]:
        (q,) = self.heads_of(self.q(self.norm1(x)), 1)
        return self.rest(x, q, *self.heads_of(self.kv(self.norm1(context)), 2))
