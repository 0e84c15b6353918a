"""Any autoencoder of diffusers, from a folder or the hub, by the class that its config names.

Only classes of diffusers itself are used, never code from the folder. Whether there is a posterior is found by encoding
one grey image, which also checks the recipe's channels and stride.
"""

import json
from pathlib import Path

import diffusers
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from marcli.errors import MarcliError
from marcli.recipe.tokenizer import LatentShape
from marcli.tokenizer.architecture import load_diffusers
from marcli.tokenizer.base import Tokenizer, to_bytes, to_signed


class AutoencoderTokenizer(Tokenizer):
    """An autoencoder with or without a posterior."""

    kind = "autoencoder"

    def __init__(self, shape: LatentShape, *, scale: float | None, network: nn.Module, source: str) -> None:
        super().__init__(shape, scale=scale)
        self.network = network.eval()
        self.has_posterior = self._probe(source)

    @torch.no_grad()
    def _probe(self, source: str) -> bool:
        side = self.shape.size * self.shape.stride
        try:
            answer = self.network.encode(torch.zeros(1, 3, side, side))
        except (RuntimeError, ValueError) as error:
            raise MarcliError(f"{source} cannot encode {side}x{side} colour images: {error}") from None
        has_posterior = hasattr(answer, "latent_dist")
        latents = answer.latent_dist.mean if has_posterior else _latents(answer)
        wanted = (self.shape.channels, self.shape.size, self.shape.size)
        if tuple(latents.shape[1:]) != wanted:
            raise MarcliError(
                f"{source} turns {side}x{side} pixels into {latents.shape[1]} channels of {latents.shape[2]}x"
                f"{latents.shape[3]}: set tokenizer.channels={latents.shape[1]} "
                f"tokenizer.stride={side // latents.shape[2]}"
            )
        return has_posterior

    @torch.no_grad()
    def encode(self, images: UInt8[Tensor, "batch c h w"]) -> Float[Tensor, "batch rows s s"]:
        """Return mean and standard deviation [b, 2 c, s, s], or latents [b, c, s, s]."""
        answer = self.network.encode(to_signed(images))
        if not self.has_posterior:
            return _latents(answer)
        return torch.cat([answer.latent_dist.mean, answer.latent_dist.std], dim=1)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "batch c s s"]) -> UInt8[Tensor, "batch channels height width"]:
        """Return images of scaled latents."""
        return to_bytes(self.network.decode(self.unscale(latents.float())).sample)


def load_autoencoder(folder: Path) -> nn.Module:
    """Return the network of a diffusers folder; raises MarcliError when its class is not an autoencoder."""
    try:
        name = json.loads((folder / "config.json").read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        raise MarcliError(
            f"{folder} is not an autoencoder of diffusers: it has no config.json with _class_name"
        ) from None
    network_class = getattr(diffusers, str(name), None)
    if not (isinstance(network_class, type) and issubclass(network_class, diffusers.ModelMixin)) or not hasattr(
        network_class, "encode"
    ):
        raise MarcliError(f"{folder} names the class {name!r}, which is not an autoencoder of diffusers")
    return load_diffusers(folder, network_class=network_class)


def _latents(answer: object) -> Tensor:
    """Return the latents of an encoder without a posterior, whatever its output class calls them."""
    for name in ("latents", "latent"):
        if hasattr(answer, name):
            return getattr(answer, name)
    raise MarcliError(f"the autoencoder answers with {type(answer).__name__}, which holds no latents")
