"""KL-regularised autoencoders: MAR's and LDM's `kl16` and `kl8`, through diffusers' `AutoencoderKL`.

Rows are mean and standard deviation of the posterior, so a cache keeps the noise of training open. Files in the
published layout and folders of diffusers are both read; diffusers' own `scaling_factor` is never applied.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, ConsistencyDecoderVAE
from jaxtyping import Float, UInt8
from torch import Tensor

from marcli.errors import MarcliError
from marcli.recipe.tokenizer import LatentShape
from marcli.tokenizer.architecture import AutoencoderArchitecture, load_diffusers, load_published
from marcli.tokenizer.base import Tokenizer, to_bytes, to_signed

ARCHITECTURES = {
    "kl16": AutoencoderArchitecture(
        widths=(128, 128, 256, 256, 512), latent_channels=16, attention=True, decoder_attention=False
    ),
    "kl8": AutoencoderArchitecture(
        widths=(128, 256, 512, 512), latent_channels=4, attention=False, decoder_attention=False
    ),
}


class KLTokenizer(Tokenizer):
    """An encoder to a diagonal Gaussian over latents, and a decoder."""

    has_posterior = True

    def __init__(
        self, shape: LatentShape, *, kind: str, scale: float | None, network: AutoencoderKL | ConsistencyDecoderVAE
    ) -> None:
        super().__init__(shape, scale=scale)
        self.kind = kind
        self.network = network

    @torch.no_grad()
    def encode(self, images: UInt8[Tensor, "batch c h w"]) -> Float[Tensor, "batch rows s s"]:
        """Return mean and standard deviation of the posterior, stacked: [b, 2 c, s, s]."""
        posterior = self.network.encode(to_signed(images)).latent_dist
        return torch.cat([posterior.mean, posterior.std], dim=1)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "batch c s s"]) -> UInt8[Tensor, "batch channels height width"]:
        """Return images of scaled latents."""
        return to_bytes(self.network.decode(self.unscale(latents.float())).sample)


def load_kl(path: Path, *, architecture: AutoencoderArchitecture) -> AutoencoderKL:
    """Return the network of a published file or of a diffusers folder; raises MarcliError naming what does not fit."""
    if path.is_file():
        return load_published(path, network_class=AutoencoderKL, architecture=architecture)
    network = load_diffusers(path, network_class=AutoencoderKL)
    found = (network.config.latent_channels, len(network.config.block_out_channels))
    if found != (architecture.latent_channels, architecture.levels):
        raise MarcliError(
            f"{path} has {found[0]} latent channels and {found[1]} resolutions, not {architecture.latent_channels} and "
            f"{architecture.levels}: use tokenizer.kind autoencoder for it"
        )
    return network
