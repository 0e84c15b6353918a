"""The causal transformer (AR): every token sees those before it in the order, and nothing else.

The input is the sequence shifted by one, the class token first. To each input is added the embedding of its own
position and of the position to be predicted next, so the same stack serves raster and random order.
"""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from marcli.model.layers.attention import KeyValueCache
from marcli.model.layers.block import NORM_EPS, Block
from marcli.model.layers.embed import at_positions, embedding, initialize, token_embedding


class CausalBackbone(nn.Module):
    """GPT-style stack with teacher forcing in training and cached keys and values in generation."""

    def __init__(
        self,
        *,
        num_tokens: int,
        token_dim: int,
        codebook_size: int | None,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.width = width
        self.heads = heads
        self.token_embed = token_embedding(token_dim=token_dim, codebook_size=codebook_size, width=width)
        self.start_position = embedding(1, 1, width)
        self.own_position = embedding(1, num_tokens, width)
        self.next_position = embedding(1, num_tokens, width)
        self.embed_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.blocks = nn.ModuleList(
            Block(width=width, heads=heads, mlp_ratio=mlp_ratio, dropout=dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.z_position = embedding(1, num_tokens, width)
        initialize(self)

    def inputs(
        self,
        known: Shaped[Tensor, "batch known dim"],
        order: Int[Tensor, "batch tokens"],
        condition: Float[Tensor, "batch width"],
        first: int,
    ) -> Float[Tensor, "batch inputs width"]:
        """Inputs from index `first` on: the class token is 0, the known tokens follow, each told what comes next."""
        last = known.shape[1]
        behind = slice(max(first - 1, 0), last)
        x = self.token_embed(known[:, behind]) + at_positions(self.own_position, order[:, behind])
        if first == 0:
            x = torch.cat([condition.unsqueeze(1) + self.start_position, x], dim=1)
        return self.embed_norm(x + at_positions(self.next_position, order[:, first : last + 1]))

    def new_cache(self, batch_size: int, like: Tensor) -> list[KeyValueCache]:
        """Room for the keys and values of every layer, in the dtype and on the device of `like`."""
        shape = (batch_size, self.heads, self.num_tokens, self.width // self.heads)
        return [KeyValueCache(like.new_empty(shape), like.new_empty(shape)) for _ in self.blocks]

    def predict(
        self,
        known: Shaped[Tensor, "batch known dim"],
        order: Int[Tensor, "batch tokens"],
        condition: Float[Tensor, "batch width"],
        *,
        num_wanted: int,
        cache: list[KeyValueCache] | None = None,
    ) -> Float[Tensor, "batch wanted width"]:
        """z of the next token, given those at order[:known]; a cache computes only what it lacks.

        Raises ValueError unless `num_wanted` is 1: a causal model reveals one token per step.
        """
        if num_wanted != 1:
            raise ValueError(f"a causal backbone predicts one token per step, not {num_wanted}")
        first = 0 if cache is None else cache[0].length
        x = self.inputs(known, order, condition, first)
        z = self.norm(self.run_blocks(x, cache)[:, -1:])
        return z + at_positions(self.z_position, order[:, known.shape[1] : known.shape[1] + 1])

    def forward(
        self,
        tokens: Shaped[Tensor, "batch tokens dim"],
        order: Int[Tensor, "batch tokens"],
        condition: Float[Tensor, "batch width"],
        num_known: int,
    ) -> Float[Tensor, "batch hidden width"]:
        """z of every token from `num_known` on, by teacher forcing; `tokens` are in reveal order."""
        x = self.run_blocks(self.inputs(tokens[:, :-1], order, condition, 0), None)
        z = self.norm(x) + at_positions(self.z_position, order)
        return z[:, num_known:]

    def run_blocks(self, x: Tensor, cache: list[KeyValueCache] | None) -> Tensor:
        """The stack, causal."""
        for layer, block in enumerate(self.blocks):
            x = block(x, causal=True, cache=None if cache is None else cache[layer])
        return x
