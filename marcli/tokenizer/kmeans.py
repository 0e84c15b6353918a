"""A codebook of pixel patches learned by k-means in seconds: the discrete half of the paper without fetched weights.

With output 'codes' a row is the number of the nearest patch; with 'latents' it is the patch itself (as bytes), which
decoding quantises first.
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped, UInt8
from safetensors.torch import save_file
from torch import Tensor

from marcli.data.images import ImageSet
from marcli.errors import MarcliError
from marcli.pretrained.safe import read_safetensors_file
from marcli.recipe.tokenizer import LatentShape
from marcli.tokenizer.base import Tokenizer, nearest_codes, to_bytes, to_signed

FILE = "codebook.safetensors"
PATCHES = 200_000  # learn from so many at most, those of images evenly spread
FULL_DISTANCES = 2e8  # distances per pass up to which all points are used in each; above, random batches of them


class KMeansTokenizer(Tokenizer):
    """Nearest patch of a learned codebook [codes, channels * patch * patch], values in -1..1."""

    kind = "kmeans"

    def __init__(self, shape: LatentShape, *, scale: float | None, channels: int, codebook_size: int) -> None:
        super().__init__(shape, scale=scale)
        self.register_buffer("codebook", torch.full((codebook_size, channels * shape.stride**2), float("nan")))
        self.row_dtype = torch.uint8 if shape.codebook_size is None else torch.uint16

    def fit(self, images: ImageSet, *, seed: int) -> None:
        """Learn the codebook from up to 200,000 patches; raises MarcliError when there are fewer patches than codes."""
        from sklearn.cluster import KMeans, MiniBatchKMeans

        step = math.ceil(len(images) * self.shape.size**2 / PATCHES)
        patches = [
            self._flatten(to_signed(F.pixel_unshuffle(pixels, self.shape.stride)))
            for pixels, _ in images.batches(256, indices=np.arange(0, len(images), step))
        ]
        points, counts = np.unique(torch.cat(patches).numpy(), axis=0, return_counts=True)
        codes = len(self.codebook)
        if len(points) < codes:
            raise MarcliError(
                f"the images have only {len(points)} different patches for {codes} codes: lower the tokenizer's "
                "codebook_size"
            )
        seed %= 2**32  # all that scikit-learn takes
        if len(points) * codes <= FULL_DISTANCES:
            model = KMeans(codes, random_state=seed, n_init=1, max_iter=50, tol=1e-3)
        else:
            model = MiniBatchKMeans(codes, random_state=seed, n_init=1, max_iter=20, batch_size=max(4096, 2 * codes))
        centres = model.fit(points, sample_weight=counts).cluster_centers_
        self.codebook.copy_(torch.from_numpy(np.ascontiguousarray(centres, dtype=np.float32)))

    @torch.no_grad()
    def encode(self, images: UInt8[Tensor, "batch c h w"]) -> Shaped[Tensor, "batch rows s s"]:
        """Return int64 codes [b, 1, s, s], or the patches as bytes [b, c, s, s]."""
        patches = F.pixel_unshuffle(images, self.shape.stride)
        return patches if self.shape.codebook_size is None else self.quantise(to_signed(patches))

    def sample(
        self, rows: Shaped[Tensor, "batch rows s s"], noise: Float[Tensor, "batch c s s"] | None
    ) -> Float[Tensor, "batch c s s"] | Int64[Tensor, "batch 1 s s"]:
        """Return int64 codes, or patches in [-1, 1] times the scale; `noise` is not used."""
        if self.shape.codebook_size is not None:
            return super().sample(rows, noise)
        return to_signed(rows) * self._known_scale()

    @torch.no_grad()
    def decode(
        self, latents: Float[Tensor, "batch c s s"] | Int64[Tensor, "batch 1 s s"]
    ) -> UInt8[Tensor, "batch channels height width"]:
        """Return images of codes, or of scaled patches after quantising them."""
        codes = latents if self.shape.codebook_size is not None else self.quantise(self.unscale(latents))
        patches = self.codebook[codes[:, 0]].permute(0, 3, 1, 2)
        return to_bytes(F.pixel_shuffle(patches, self.shape.stride))

    def quantise(self, patches: Float[Tensor, "batch c s s"]) -> Int64[Tensor, "batch 1 s s"]:
        """Return the number of the nearest codebook entry."""
        nearest = nearest_codes(self._flatten(patches), self.codebook)
        return nearest.reshape(patches.shape[0], 1, *patches.shape[2:])

    def save_weights(self, folder: Path) -> None:
        """Write the codebook into `folder`."""
        save_file({"codebook": self.codebook.contiguous().cpu()}, folder / FILE)

    def load_weights(self, folder: Path) -> None:
        """Read what `save_weights` wrote; raises MarcliError."""
        codebook = read_safetensors_file(folder / FILE)[0].get("codebook")
        if codebook is None or codebook.shape != self.codebook.shape:
            raise MarcliError(f"{folder / FILE} holds no codebook of shape {list(self.codebook.shape)}")
        self.codebook.copy_(codebook)

    @staticmethod
    def _flatten(patches: Tensor) -> Tensor:
        return patches.permute(0, 2, 3, 1).reshape(-1, patches.shape[1])
