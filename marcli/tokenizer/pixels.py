"""The image itself: latents are pixels in [-1, 1]. Rows are the bytes, so a cache of them is exact."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from marcli.tokenizer.base import Tokenizer, to_bytes, to_signed


class PixelsTokenizer(Tokenizer):
    """No network; only the scale is measured."""

    kind = "pixels"
    row_dtype = torch.uint8

    def encode(self, images: UInt8[Tensor, "batch c h w"]) -> UInt8[Tensor, "batch c h w"]:
        """Return the images."""
        return images

    def sample(
        self, rows: UInt8[Tensor, "batch c h w"], noise: Float[Tensor, "batch c h w"] | None
    ) -> Float[Tensor, "batch c h w"]:
        """Return pixels in [-1, 1] times the scale; there is no posterior, so `noise` is not used."""
        return to_signed(rows) * self._known_scale()

    def decode(self, latents: Float[Tensor, "batch c h w"]) -> UInt8[Tensor, "batch c h w"]:
        """Return bytes."""
        return to_bytes(self.unscale(latents))
