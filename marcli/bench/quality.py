"""The Frechet distance of the pictures that were timed, with its standard error.

Special: pictures are reduced to moments batch by batch and never kept; the moments stand in a few groups, and leaving
out one group after the other (the jackknife) tells how far the distance would move with other seeds.
"""

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from marcli.metrics.features import Extractor
from marcli.metrics.frechet import frechet_distance
from marcli.metrics.statistics import Gaussian, RunningMoments

GROUPS = 8
IMAGES_PER_DIMENSION = 2  # fewer, and a group's absence says more about the rank than about the noise


@dataclass(frozen=True)
class Judge:
    """A feature network and the real pictures' moments; `name` is the axis of the plot, `protocol` the small print."""

    extractor: Extractor
    reference: Gaussian
    name: str
    protocol: str
    is_grey: bool

    def features(self, images: Tensor) -> np.ndarray:
        """Features of 8-bit pictures; raw pixels of grey pictures count once, not three times."""
        features = self.extractor(images)
        return features[:, : features.shape[1] // 3] if self.is_grey else features


class Tally:
    """The moments of one point's pictures so far."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.protocol = judge.protocol
        self._groups = [RunningMoments(judge.reference.dim) for _ in range(GROUPS)]
        self._batches = 0

    @property
    def count(self) -> int:
        """Pictures so far."""
        return sum(group.count for group in self._groups)

    def add(self, images: Tensor) -> None:
        """Take in one batch of 8-bit pictures."""
        self._groups[self._batches % GROUPS].update(self.judge.features(images))
        self._batches += 1

    def distance(self) -> tuple[float, float | None]:
        """Return the distance and its standard error, None for too few pictures or batches to tell."""
        whole = self._distance_without(None)
        occupied = [index for index, group in enumerate(self._groups) if group.count]
        if len(occupied) < GROUPS or self.count < IMAGES_PER_DIMENSION * self.judge.reference.dim:
            return whole, None
        left_out = np.array([self._distance_without(index) for index in occupied])
        variance = (GROUPS - 1) / GROUPS * ((left_out - left_out.mean()) ** 2).sum()
        return whole, math.sqrt(variance)

    def _distance_without(self, left_out: int | None) -> float:
        total = RunningMoments(self.judge.reference.dim)
        for index, group in enumerate(self._groups):
            if index != left_out:
                total.merge(group)
        return frechet_distance(total.gaussian(), self.judge.reference)
