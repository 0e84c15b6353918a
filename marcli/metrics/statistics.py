"""Mean and covariance of features: the Gaussian that the Frechet distance compares.

Sums are float64 and merge exactly as one pass would (Chan's update), and a set with fewer images than dimensions also
keeps the thin factor of its covariance, from which the distance is exact.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from marcli.errors import MarcliError


@dataclass(frozen=True)
class Gaussian:
    """Moments of a feature set, in float64.

    `covariance` has the n - 1 denominator. `factor`, when present, has rows with `factor.T @ factor == covariance`;
    it is kept when there are fewer images than dimensions. `count` is None for published statistics that do not say.
    """

    mean: Float[np.ndarray, " dim"]
    covariance: Float[np.ndarray, "dim dim"]
    factor: Float[np.ndarray, "rows dim"] | None
    count: int | None

    @property
    def dim(self) -> int:
        """Number of features."""
        return len(self.mean)


class RunningMoments:
    """Mean and scatter of features seen so far, in float64, batch by batch."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean = np.zeros(dim)
        self.scatter = np.zeros((dim, dim))

    def update(self, features: Shaped[np.ndarray, "batch dim"]) -> None:
        """Add a batch; numerically the same as having had all rows at once."""
        batch = np.asarray(features, dtype=np.float64)
        if not len(batch):
            return
        batch_mean = batch.mean(axis=0)
        shift, weight = self._shift(len(batch), batch_mean)
        rows = np.vstack([batch - batch_mean, shift * np.sqrt(weight)])  # one product adds both terms
        self.scatter += rows.T @ rows

    def merge(self, other: "RunningMoments") -> None:
        """Add everything another accumulator has seen."""
        if other.count:
            shift, weight = self._shift(other.count, other.mean)
            self.scatter += other.scatter
            self.scatter += np.outer(shift, shift) * weight

    def _shift(self, count: int, mean: np.ndarray) -> tuple[np.ndarray, float]:
        """Count `count` more images with this mean; return the means' difference and its weight in the scatter."""
        total = self.count + count
        shift, weight = mean - self.mean, self.count * count / total
        self.mean = self.mean + shift * (count / total)
        self.count = total
        return shift, weight

    def gaussian(self) -> Gaussian:
        """Return the moments; raises MarcliError with fewer than two images."""
        require_two(self.count)
        return Gaussian(mean=self.mean, covariance=self.scatter / (self.count - 1), factor=None, count=self.count)


def gaussian_from_features(features: Shaped[np.ndarray, "images dim"]) -> Gaussian:
    """Return the moments of a feature matrix; raises MarcliError with fewer than two images or values not finite."""
    count, dim = features.shape
    require_two(count)
    rows = np.asarray(features, dtype=np.float64)
    require_finite(rows)
    if count < dim:
        mean = rows.mean(axis=0)
        factor = (rows - mean) / np.sqrt(count - 1)
        return Gaussian(mean=mean, covariance=factor.T @ factor, factor=factor, count=count)
    return gaussian_from_batches(rows[start : start + 4096] for start in range(0, count, 4096))


def gaussian_from_batches(batches: Iterable[Shaped[np.ndarray, "batch dim"]]) -> Gaussian:
    """Return the moments of features that come in pieces; raises MarcliError with fewer than two images."""
    moments = None
    for batch in batches:
        moments = moments or RunningMoments(batch.shape[1])
        moments.update(batch)
    if moments is None:
        require_two(0)
    return moments.gaussian()


def require_two(count: int) -> None:
    """Raise MarcliError unless there are at least two images."""
    if count < 2:
        raise MarcliError(f"A distance between distributions needs at least 2 images, but there are {count}.")


def require_finite(features: np.ndarray) -> None:
    """Raise MarcliError naming the first image whose features are NaN or infinite."""
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise MarcliError(
            f"The features of {len(bad)} of {len(features)} images are not finite (the first is image {bad[0]}): "
            "the images hold NaN, or the feature network's weights are damaged. No score is computed from them."
        )
