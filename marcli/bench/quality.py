"""The Frechet distance of the pictures that were timed, with its standard error.

Pictures are reduced to moments batch by batch and never kept; the moments stand in a few groups, and leaving out one
group after the other (the jackknife) tells how far the distance would move with other seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from marcli.bench.clock import bytes_held
from marcli.bench.request import Request
from marcli.errors import MarcliError, UsageError
from marcli.metrics.evaluate import distance_name
from marcli.metrics.features import Extractor, build_extractor
from marcli.metrics.frechet import frechet_distance
from marcli.metrics.references import Reference, check_colour, open_reference
from marcli.metrics.statistics import RunningMoments
from marcli.recipe.data import Data
from marcli.runtime.accelerator import Processes
from marcli.sampling.evaluation import colours_of
from marcli.sampling.system import System

TINY_PIXELS = 16 * 16
READERS = 2
GROUPS = 8
IMAGES_PER_DIMENSION = 2  # fewer, and a group's absence says more about the rank than about the noise


@dataclass(frozen=True)
class Judge:
    """A feature network, and the real pictures it has seen."""

    extractor: Extractor
    reference: Reference

    @property
    def protocol(self) -> str:
        """Everything that two distances must share to be compared."""
        identity = " ".join(str(value) for value in self.extractor.identity.values() if value)
        return f"{identity} against {self.reference.name} {self.reference.sha256[:12]}"

    @property
    def weights(self) -> Mapping[int, int]:
        """Bytes of the network's weights, where it is a module, see `bytes_held`."""
        network = self.extractor.network
        return bytes_held(network) if isinstance(network, nn.Module) else {}

    def features(self, images: Tensor) -> np.ndarray:
        """Features of 8-bit pictures; raw pixels of grey ones count once where the reference is grey, too."""
        return self.extractor(images)[:, : self.reference.gaussian.dim]


class Tally:
    """The moments of one point's pictures so far."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self._groups = [RunningMoments(judge.reference.gaussian.dim) for _ in range(GROUPS)]
        self._batches = 0

    @property
    def count(self) -> int:
        """Pictures so far."""
        return sum(group.count for group in self._groups)

    @property
    def name(self) -> str:
        """What the distance is called with this many pictures."""
        return distance_name(self.judge.extractor, self.count)

    def add(self, images: Tensor) -> None:
        """Take in one batch of 8-bit pictures."""
        self._groups[self._batches % GROUPS].update(self.judge.features(images))
        self._batches += 1

    def distance(self) -> tuple[float, float | None]:
        """Return the distance and its standard error, None for too few pictures or batches to tell."""
        whole = self._distance_without(None)
        occupied = [index for index, group in enumerate(self._groups) if group.count]
        if len(occupied) < GROUPS or self.count < IMAGES_PER_DIMENSION * self.judge.reference.gaussian.dim:
            return whole, None
        left_out = np.array([self._distance_without(index) for index in occupied])
        variance = (GROUPS - 1) / GROUPS * ((left_out - left_out.mean()) ** 2).sum()
        return whole, math.sqrt(variance)

    def _distance_without(self, left_out: int | None) -> float:
        total = RunningMoments(self.judge.reference.gaussian.dim)
        for index, group in enumerate(self._groups):
            if index != left_out:
                total.merge(group)
        return frechet_distance(total.gaussian(), self.judge.reference.gaussian)


def build_judge(systems: Sequence[System], request: Request, processes: Processes) -> tuple[Judge | None, str]:
    """Return who judges pictures of these trained systems, if anyone, and a line that says so.

    Tiny pictures are judged by their pixels against their own training set, larger ones only against a reference.
    Raises UsageError when quality was asked for and cannot be measured.
    """
    recipes = [system.recipe for system in systems]
    if request.quality is False:
        return None, "Quality was not asked for."
    if not recipes:
        return None, "Weights are random, so only speed is measured."
    data = recipes[0].data
    is_tiny = data.image_size**2 <= TINY_PIXELS
    if request.reference is None and not is_tiny and not request.quality:
        return None, "No --reference was given, so only speed is measured."
    if len({(recipe.data.image_size, recipe.data.channels) for recipe in recipes}) > 1:
        raise UsageError("The runs make pictures of different sizes, which no reference can judge: use --no-quality")
    features = request.features or ("pixels" if is_tiny else "inception")
    if request.inception is not None and features != "inception":
        raise UsageError(f"--inception is for --features inception, and here they are {features}: leave it out")
    try:
        judge = open_judge(features, request.reference or data, data.image_size, request.inception, processes)
        for system in systems if features == "pixels" else ():
            check_colour(judge.reference, colours_of(system))
    except MarcliError as error:
        if request.quality or request.reference:
            raise
        return None, f"Only speed is measured. {error}"
    return judge, f"Quality: Frechet distance by {features} against {judge.reference.name}, ± its standard error."


def open_judge(
    features: str, reference: str | Data, image_size: int, inception: Path | None, processes: Processes
) -> Judge:
    """Build the feature network and measure the reference with it."""
    extractor = build_extractor(
        features,
        protocol="legacy_tensorflow",
        inception=inception,
        inception_sha256=None,
        feature_weights=None,
        device=processes.device,
    )
    opened = open_reference(reference, extractor, image_size=image_size, processes=processes, workers=READERS)
    return Judge(extractor, opened)
