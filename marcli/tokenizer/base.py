"""What every tokenizer is: images to cacheable rows, rows to scaled latents, latents to images.

`encode` is the expensive half and is what a cache stores; `sample` is cheap and draws the latents that a model sees;
`decode` goes back. A tokenizer owns its statistics: `scale` brings latents to unit variance, and the fingerprint says
which network made them, so that a cache or a run made with another one can be refused.
"""

import hashlib
import json
from pathlib import Path

import torch
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor, nn

from marcli.data.images import ImageSet
from marcli.recipe.tokenizer import LatentShape

DISTANCES = 2**26  # to codes at once: 256 MiB


class Tokenizer(nn.Module):
    """Base of all tokenizers.

    Attributes:
        kind: the recipe's word for it
        shape: geometry of one image's latents
        rows: channels of one cached row (twice the latent channels with a posterior)
        row_dtype: dtype of cached rows: uint8 pixels, float16 moments or uint16 codes
        scale: factor from raw to model latents, 1/std; None until measured; 1 for codes
        has_posterior: rows are mean and standard deviation, stacked
        weights_note: what to say about the weights in reports, or None
        weights_source: where the weights lie: an absolute path, a hub id, or None for published or learned ones
    """

    kind: str
    has_posterior: bool = False
    row_dtype: torch.dtype = torch.float16

    def __init__(self, shape: LatentShape, *, scale: float | None) -> None:
        super().__init__()
        self.shape = shape
        self.scale = 1.0 if shape.codebook_size is not None else scale
        self.weights_note: str | None = None
        self.weights_source: str | None = None

    @property
    def rows(self) -> int:
        """Channels of one cached row."""
        return self.shape.channels * (2 if self.has_posterior else 1)

    @property
    def fingerprint(self) -> str:
        """sha256 over kind, settings and weights; not the scale, which only follows from them."""
        digest = hashlib.sha256(json.dumps([self.kind, self.settings()], sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            array = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
            digest.update(array.flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def settings(self) -> dict[str, object]:
        """What decides the latents besides the weights."""
        return {"latent": self.shape.model_dump()}

    def fit(self, images: ImageSet, *, seed: int) -> None:
        """Learn what is learned from the training images, before anything is encoded; by default there is nothing."""

    def save_weights(self, folder: Path) -> None:
        """Write into `folder` what `fit` learned; by default there is nothing."""

    def load_weights(self, folder: Path) -> None:
        """Read what `save_weights` wrote; raises MarcliError when it is missing or does not fit."""

    def encode(self, images: UInt8[Tensor, "batch c h w"]) -> Shaped[Tensor, "batch rows s s"]:
        """Return cacheable rows, unscaled, of `row_dtype`'s meaning (floats may still be float32)."""
        raise NotImplementedError

    def sample(
        self, rows: Shaped[Tensor, "batch rows s s"], noise: Float[Tensor, "batch c s s"] | None
    ) -> Float[Tensor, "batch c s s"] | Int64[Tensor, "batch 1 s s"]:
        """Return scaled float32 latents, or int64 codes.

        `noise` is standard normal and used by tokenizers with a posterior; None gives the mean.
        """
        if self.shape.codebook_size is not None:
            return codes_to_int64(rows)
        rows = rows.float()
        if self.has_posterior:
            mean, std = rows.chunk(2, dim=1)
            rows = mean if noise is None else mean + std * noise
        return rows * self._known_scale()

    def decode(
        self, latents: Float[Tensor, "batch c s s"] | Int64[Tensor, "batch 1 s s"]
    ) -> UInt8[Tensor, "batch channels height width"]:
        """Return images of scaled latents or codes, rounded to 8 bits."""
        raise NotImplementedError

    def unscale(self, latents: Float[Tensor, "batch c s s"]) -> Float[Tensor, "batch c s s"]:
        """Undo `scale`."""
        return latents / self._known_scale()

    def _known_scale(self) -> float:
        if self.scale is None:
            raise RuntimeError(f"the scale of tokenizer {self.kind!r} is not measured yet: call measure_scale first")
        return self.scale


def to_signed(images: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Bytes 0..255 to float32 -1..1."""
    return images.float() / 127.5 - 1


def to_bytes(images: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Floats -1..1 to bytes: round((x + 1) / 2 * 255), clipped; not a number becomes 0."""
    return ((images.float() + 1) * 127.5).nan_to_num(nan=0.0).round().clamp(0, 255).to(torch.uint8)


def codes_to_int64(rows: Tensor) -> Int64[Tensor, "*shape"]:
    """Widen cached uint16 codes, which torch can hardly compute with."""
    return rows.view(torch.int16).long() & 0xFFFF if rows.dtype == torch.uint16 else rows.long()


def nearest_codes(
    vectors: Float[Tensor, "vectors channels"], codebook: Float[Tensor, "codes channels"]
) -> Int64[Tensor, " vectors"]:
    """Return the number of the codebook entry nearest to each vector, with memory for `DISTANCES` distances."""
    parts = vectors.split(max(1, DISTANCES // len(codebook)))
    return torch.cat([torch.cdist(part, codebook).argmin(dim=1) for part in parts])
