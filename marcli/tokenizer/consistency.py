"""Stable Diffusion's encoder with OpenAI's consistency decoder, through diffusers' `ConsistencyDecoderVAE`.

The decoder is a two-step sampler and needs noise. It is drawn per image from a fixed seed, so an image does not depend
on its neighbours in the batch.
"""

import torch
from diffusers import ConsistencyDecoderVAE
from jaxtyping import Float, UInt8
from torch import Tensor

from marcli.recipe.tokenizer import LatentShape
from marcli.tokenizer.base import to_bytes
from marcli.tokenizer.kl import KLTokenizer

SEED = 0


class ConsistencyTokenizer(KLTokenizer):
    """A KL encoder and a sampler that decodes."""

    def __init__(self, shape: LatentShape, *, scale: float | None, network: ConsistencyDecoderVAE) -> None:
        super().__init__(shape, kind="consistency", scale=scale, network=network)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "batch c s s"]) -> UInt8[Tensor, "batch channels height width"]:
        """Return images of scaled latents."""
        generators = [torch.Generator().manual_seed(SEED) for _ in latents]
        return to_bytes(self.network.decode(self.unscale(latents.float()), generator=generators).sample)
