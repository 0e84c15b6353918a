"""The denoiser's body for one picture: two Triton kernels per residual block instead of four and more.

At the 2 to 16 rows of a single guided picture no kernel keeps a whole GPU busy, so the number of kernels decides the
time. Here a residual block is two of them: one product with all that precedes it (norm, modulation), and one with all
that follows (gate, sum). Every program recomputes the norms of all rows, which is cheaper than another kernel.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from marcli.model.layers.block import NORM_EPS
from marcli.sampling.engine.denoise import Body, FastResidualBlock

MOST_ROWS = 16
TILE = 16  # output features of a program
SPLITS = tl.constexpr(4)  # warps that share the inner dimension of a product
SMALLEST_CHUNK, LARGEST_CHUNK = 64, 512  # of the inner dimension, a power of two that divides it
NUM_WARPS = 8


class FewRows:
    """What `Body` computes, in bf16 on a GPU, for at most `MOST_ROWS` rows of both halves together."""

    def __init__(self, body: Body) -> None:
        self.body = body
        self.chunk = min(LARGEST_CHUNK, body.width & -body.width)

    def takes(self, modulations: list[Float[Tensor, "halves rows _"]]) -> bool:
        """Whether these rows are few, and the width is one that the kernels know."""
        few = modulations[0].shape[:2].numel() <= MOST_ROWS
        return few and modulations[0].dtype == torch.bfloat16 and self.chunk >= SMALLEST_CHUNK

    def __call__(
        self, x: Float[Tensor, "rows dim"], modulations: list[Float[Tensor, "halves rows _"]]
    ) -> Float[Tensor, "halves rows two_dim"]:
        x = self.body.token_embed(x)
        for block, modulation in zip(self.body.blocks, modulations[:-1], strict=True):
            x = self.residual(block, x, modulation.flatten(0, 1))
        out, last = self.body.out, modulations[-1]
        return self.modulated(x, last.flatten(0, 1), out.weight, out.bias).unflatten(0, last.shape[:2])

    def residual(self, block: FastResidualBlock, x: Tensor, modulation: Float[Tensor, "rows _"]) -> Tensor:
        """A residual block; `x` has the rows of one half or of both."""
        h = self.modulated(x, modulation, block.fc1.weight, block.fc1.bias, norm=block.norm, swish=True)
        result = torch.empty_like(h)
        gated_sum[(triton.cdiv(h.shape[1], TILE),)](
            h,
            modulation,
            block.fc2.weight,
            block.fc2.bias,
            x,
            result,
            len(h),
            len(x),
            width=h.shape[1],
            **self.tiles(len(h)),
        )
        return result

    def modulated(
        self,
        x: Tensor,
        modulation: Float[Tensor, "rows _"],
        weight: Tensor,
        bias: Tensor,
        *,
        norm: torch.nn.LayerNorm | None = None,
        swish: bool = False,
    ) -> Float[Tensor, "rows out"]:
        """(norm(x) * scale + shift) W^T + b, and swish of it."""
        result = x.new_empty(len(modulation), len(bias))
        modulated_product[(triton.cdiv(len(bias), TILE),)](
            x,
            modulation,
            norm.weight if norm else weight,
            norm.bias if norm else bias,
            weight,
            bias,
            result,
            len(modulation),
            len(x),
            len(bias),
            NORM_EPS,
            width=x.shape[1],
            parts=modulation.shape[1] // x.shape[1],
            affine=norm is not None,
            swish=swish,
            **self.tiles(len(modulation)),
        )
        return result

    def tiles(self, rows: int) -> dict[str, int]:
        """How a kernel is cut into programs, and a program into warps."""
        return {"row_tile": 8 if rows <= 8 else 16, "tile": TILE, "chunk": self.chunk, "num_warps": NUM_WARPS}


@triton.jit(do_not_specialize=["rows", "x_rows"])
def modulated_product(
    x,
    modulation,
    norm_weight,
    norm_bias,
    weight,
    bias,
    out,
    rows,
    x_rows,
    num_features,
    eps,
    width: tl.constexpr,
    parts: tl.constexpr,
    affine: tl.constexpr,
    swish: tl.constexpr,
    row_tile: tl.constexpr,
    tile: tl.constexpr,
    chunk: tl.constexpr,
):
    """out = (norm(x) * scale + shift) W^T + b, or swish of it; row r reads row r % x_rows of x."""
    row, feature = tl.arange(0, row_tile), tl.program_id(0) * tile + tl.arange(0, tile)
    there = (row < rows)[None, None, :]
    x_row = x + (row % x_rows)[None, None, :] * width
    shift_row = modulation + row[None, None, :] * (parts * width)
    total = tl.zeros((row_tile,), tl.float32)
    squares = tl.zeros((row_tile,), tl.float32)
    for start in tl.static_range(0, width, chunk):
        value = tl.load(x_row + inner(start, chunk)[:, :, None], mask=there, other=0.0).to(tl.float32)
        total += tl.sum(tl.sum(value, axis=1), axis=0)
        squares += tl.sum(tl.sum(value * value, axis=1), axis=0)
    mean = total / width
    inverse_std = tl.rsqrt(squares / width - mean * mean + eps)
    y = tl.zeros((SPLITS, tile, row_tile), tl.float32)
    for start in tl.static_range(0, width, chunk):
        at = inner(start, chunk)[:, :, None]
        value = tl.load(x_row + at, mask=there, other=0.0).to(tl.float32)
        value = (value - mean[None, None, :]) * inverse_std[None, None, :]
        if affine:
            value = value * tl.load(norm_weight + at).to(tl.float32) + tl.load(norm_bias + at).to(tl.float32)
        shift = tl.load(shift_row + at, mask=there, other=0.0).to(tl.float32)
        scale = tl.load(shift_row + width + at, mask=there, other=0.0).to(tl.float32)
        left = weight_tile(weight, feature, num_features, width, start, chunk)
        y = tl.dot(left, (value * scale + shift).to(left.dtype), y)
    known = feature < num_features
    y = tl.sum(y, axis=0) + tl.load(bias + feature, mask=known, other=0.0).to(tl.float32)[:, None]
    if swish:
        y = y * tl.sigmoid(y)
    where = out + row[None, :] * num_features + feature[:, None]
    tl.store(where, y.to(out.dtype.element_ty), mask=(row < rows)[None, :] & known[:, None])


@triton.jit(do_not_specialize=["rows", "x_rows"])
def gated_sum(
    h,
    modulation,
    weight,
    bias,
    x,
    out,
    rows,
    x_rows,
    width: tl.constexpr,
    row_tile: tl.constexpr,
    tile: tl.constexpr,
    chunk: tl.constexpr,
):
    """out = x + gate * (h W^T + b); row r reads row r % x_rows of x."""
    row, feature = tl.arange(0, row_tile), tl.program_id(0) * tile + tl.arange(0, tile)
    there = row < rows
    y = tl.zeros((SPLITS, tile, row_tile), tl.float32)
    for start in tl.static_range(0, width, chunk):
        place = row[None, None, :] * width + inner(start, chunk)[:, :, None]
        right = tl.load(h + place, mask=there[None, None, :], other=0.0)
        y = tl.dot(weight_tile(weight, feature, width, width, start, chunk), right, y)
    y = tl.sum(y, axis=0) + tl.load(bias + feature, mask=feature < width, other=0.0).to(tl.float32)[:, None]
    mask = there[None, :] & (feature < width)[:, None]
    gate = tl.load(modulation + row[None, :] * (3 * width) + 2 * width + feature[:, None], mask=mask, other=0.0)
    before = tl.load(x + (row % x_rows)[None, :] * width + feature[:, None], mask=mask, other=0.0)
    after = before.to(tl.float32) + gate.to(tl.float32) * y
    tl.store(out + row[None, :] * width + feature[:, None], after.to(out.dtype.element_ty), mask=mask)


@triton.jit
def inner(start, chunk: tl.constexpr):
    """Indices of a chunk of the inner dimension, [splits, chunk / splits]."""
    split: tl.constexpr = chunk // SPLITS
    return start + tl.arange(0, SPLITS)[:, None] * split + tl.arange(0, split)[None, :]


@triton.jit
def weight_tile(weight, feature, num_features, width: tl.constexpr, start, chunk: tl.constexpr):
    """Part of a weight, [splits, features, chunk / splits]."""
    place = feature[None, :, None] * width + inner(start, chunk)[:, None, :]
    return tl.load(weight + place, mask=(feature < num_features)[None, :, None], other=0.0)
