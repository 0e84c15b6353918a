"""Latents to tokens and back: a square of p x p latent vectors is one token, channel-major inside."""

import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Tensor


def to_tokens(
    latents: Shaped[Tensor, "batch channels height width"], patch_size: int
) -> Shaped[Tensor, "batch tokens dim"]:
    """Group latents into tokens of channels * p * p values, in raster order of the grid."""
    return F.pixel_unshuffle(latents, patch_size).flatten(2).transpose(1, 2)


def to_latents(
    tokens: Shaped[Tensor, "batch tokens dim"], patch_size: int
) -> Shaped[Tensor, "batch channels height width"]:
    """Inverse of `to_tokens` for a square grid."""
    side = round(tokens.shape[1] ** 0.5)
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (side, side)), patch_size)
