"""How much of an image survives a tokenizer: PSNR, SSIM, rFID, and what its latents look like.

PSNR and SSIM are means over images of 8-bit pixels. rFID is the Frechet distance between the images and their round
trips, so it needs many images and depends on the features; the result names both.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from marcli.errors import MarcliError
from marcli.metrics.features import Extractor
from marcli.metrics.frechet import frechet_distance
from marcli.metrics.statistics import gaussian_from_features
from marcli.runtime.accelerator import synchronise
from marcli.tokenizer.base import Tokenizer
from marcli.tokenizer.moments import LatentMoments

PIXEL_FEATURES_SIDE = 16  # pixel features of larger pictures are those of their averages over so many squares a side


@dataclass(frozen=True)
class RoundTrip:
    """What a tokenizer did to a set of images; None where a figure has no meaning.

    Attributes:
        images: how many
        psnr: dB, mean over the images that changed; None when every pixel came back
        ssim: 0..1, mean over images
        rfid: Frechet distance between images and round trips, in `features`
        features: the extractor's name and protocol
        latent_std: standard deviation of unscaled latents, posterior noise included
        channel_std: smallest and largest standard deviation of a channel
        measured_scale: 1 / latent_std
        scale: the one in use: given, published, or the measured one
        codes_used, codes, perplexity: of a codebook
        encode_ms, decode_ms: per image
    """

    images: int
    psnr: float | None
    ssim: float
    rfid: float | None
    features: str | None
    latent_std: float | None
    channel_std: tuple[float, float] | None
    measured_scale: float | None
    scale: float | None
    codes_used: int | None
    codes: int | None
    perplexity: float | None
    encode_ms: float
    decode_ms: float


def measure_round_trip(
    tokenizer: Tokenizer,
    batches: Iterable[UInt8[Tensor, "batch c h w"]],
    *,
    extractor: Extractor | None,
    device: torch.device,
    keep: int,
) -> tuple[RoundTrip, UInt8[Tensor, "kept c h w"]]:
    """Encode and decode every batch (the mean, where there is a posterior); return figures and `keep` round trips."""
    given, tokenizer.scale = tokenizer.scale, tokenizer.scale or 1.0
    latents_seen, before, after, kept = LatentStatistics(tokenizer), [], [], []
    psnrs, ssims, encode_seconds, decode_seconds = [], [], 0.0, 0.0
    for images in batches:
        images = images.to(device)
        started = _now(device)
        rows = tokenizer.encode(images)
        encoded = _now(device)
        returned = tokenizer.decode(tokenizer.sample(rows, None))
        decode_seconds += _now(device) - encoded
        encode_seconds += encoded - started
        psnrs.append(psnr(images, returned))
        ssims.append(ssim(images, returned))
        latents_seen.add(rows)
        if extractor is not None:
            before.append(extractor(_for_features(images, extractor)))
            after.append(extractor(_for_features(returned, extractor)))
        if sum(map(len, kept)) < keep:
            kept.append(returned.cpu())
    tokenizer.scale = given
    count = sum(map(len, psnrs))
    if count == 0:
        raise MarcliError("none of the images can be read: check the path")
    differing = torch.cat(psnrs).isfinite()
    trip = RoundTrip(
        images=count,
        psnr=float(torch.cat(psnrs)[differing].mean()) if differing.any() else None,
        ssim=float(torch.cat(ssims).mean()),
        rfid=_frechet(before, after),
        features=f"{extractor.name}, {extractor.protocol}" if count > 1 and extractor is not None else None,
        **latents_seen.figures(),
        encode_ms=1000 * encode_seconds / count,
        decode_ms=1000 * decode_seconds / count,
    )
    return trip, torch.cat(kept)[:keep]


class LatentStatistics:
    """Spread of continuous latents, or use of codes, over all batches."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._moments = LatentMoments(tokenizer.shape.channels)
        self._usage = np.zeros(tokenizer.shape.codebook_size or 0, dtype=np.int64)
        self._generator = torch.Generator().manual_seed(0)

    def add(self, rows: Tensor) -> None:
        """Take in what `Tokenizer.encode` returned."""
        latents = self._tokenizer.sample(rows, None)
        if len(self._usage):
            self._usage += np.bincount(latents.flatten().cpu().numpy(), minlength=len(self._usage))
            return
        if self._tokenizer.has_posterior:
            noise = torch.randn(latents.shape, generator=self._generator).to(latents.device)
            latents = self._tokenizer.sample(rows, noise)
        self._moments.add(self._tokenizer.unscale(latents))

    def figures(self) -> dict[str, object]:
        """Return the fields of `RoundTrip` that concern latents."""
        has_codes = len(self._usage) > 0
        std = None if has_codes else self._moments.std
        return {
            "latent_std": std,
            "channel_std": None if has_codes else self._moments.channel_range,
            "measured_scale": 1 / std if std else None,
            "scale": None if has_codes else self._tokenizer.scale or (1 / std if std else None),
            "codes_used": int((self._usage > 0).sum()) if has_codes else None,
            "codes": len(self._usage) if has_codes else None,
            "perplexity": perplexity(self._usage) if has_codes else None,
        }


def psnr(images: UInt8[Tensor, "batch c h w"], others: UInt8[Tensor, "batch c h w"]) -> Float[Tensor, " batch"]:
    """Peak signal-to-noise ratio of each pair in dB, peak 255; infinite for equal images."""
    error = (images.double() - others.double()).square().mean((1, 2, 3))
    return (10 * torch.log10(255.0**2 / error)).cpu()


def ssim(images: UInt8[Tensor, "batch c h w"], others: UInt8[Tensor, "batch c h w"]) -> Float[Tensor, " batch"]:
    """Structural similarity of each pair (Wang et al. 2004), mean over channels.

    Gaussian window of 11 pixels (of the largest odd number that fits, for smaller images) and sigma 1.5, K 0.01 and
    0.03, range 255, only where the window fits.
    """
    size = min(11, images.shape[-1] - 1 + images.shape[-1] % 2)
    weights = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * 1.5**2))
    weights /= weights.sum()

    def average(values: Tensor) -> Tensor:
        # The window is an outer product, so rows and then columns; sums of slices, since convolutions in fp64 are slow.
        for axis in (-1, -2):
            length = values.shape[axis] - size + 1
            values = sum(weight * values.narrow(axis, k, length) for k, weight in enumerate(weights.tolist()))
        return values

    a, b = images.double(), others.double()
    mean_a, mean_b = average(a), average(b)
    variance_a, variance_b = average(a * a) - mean_a**2, average(b * b) - mean_b**2
    covariance = average(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (top / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))).mean((1, 2, 3)).cpu()


def perplexity(usage: np.ndarray) -> float:
    """Number of codes that, used equally, would have the same entropy."""
    shares = usage[usage > 0] / usage.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _frechet(before: list[np.ndarray], after: list[np.ndarray]) -> float | None:
    if sum(map(len, before)) < 2:
        return None
    return frechet_distance(
        gaussian_from_features(np.concatenate(before)), gaussian_from_features(np.concatenate(after))
    )


def _for_features(images: Tensor, extractor: Extractor) -> Tensor:
    """Shrink pictures that are too large for pixel features."""
    if extractor.name != "pixels" or images.shape[-1] <= PIXEL_FEATURES_SIDE:
        return images
    return F.interpolate(images.float(), size=(PIXEL_FEATURES_SIDE,) * 2, mode="area").round().to(torch.uint8)


def _now(device: torch.device) -> float:
    synchronise(device)
    return time.perf_counter()
