"""Latents to tokens and back: a square of p x p latent vectors is one token, channel-major inside."""

from jaxtyping import Shaped
from torch import Tensor


def to_tokens(
    latents: Shaped[Tensor, "batch channels height width"], patch_size: int
) -> Shaped[Tensor, "batch tokens dim"]:
    """Group latents into tokens of channels * p * p values, in raster order of the grid."""
    b, c, h, w = latents.shape
    p = patch_size
    grid = latents.reshape(b, c, h // p, p, w // p, p)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // p) * (w // p), c * p * p)


def to_latents(
    tokens: Shaped[Tensor, "batch tokens dim"], patch_size: int
) -> Shaped[Tensor, "batch channels height width"]:
    """Inverse of `to_tokens` for a square grid."""
    b, n, d = tokens.shape
    p, side = patch_size, round(n**0.5)
    grid = tokens.reshape(b, side, side, d // (p * p), p, p)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(b, d // (p * p), side * p, side * p)
