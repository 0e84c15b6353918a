"""The measuring loop: points take turns, one batch each, so that a slow minute of the machine slows them all.

The pictures that are timed are the pictures that are judged. Every point has the same number of them, and when time
runs out all points stop after the same round.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from marcli.bench.clock import Memory, PartClock, peak_memory, timed
from marcli.bench.points import Measurement, Point
from marcli.bench.quality import Tally
from marcli.recipe.schema import Recipe
from marcli.runtime.memory import release_freed_memory
from marcli.sampling.engine.base import Engine
from marcli.sampling.engine.features import CachedBackbone, FeatureCache
from marcli.sampling.generate import generate
from marcli.tokenizer.base import Tokenizer


@dataclass
class Contender:
    """One point, ready to run: its engine and tokenizer on the device, and what it has shown so far."""

    point: Point
    engine: Engine
    recipe: Recipe
    tokenizer: Tokenizer
    weights: Mapping[int, int]  # bytes of system and engine, see `bytes_held`
    tally: Tally | None
    seconds: list[float] = field(default_factory=list)
    shares: dict[str, float] = field(default_factory=dict)
    peak: Memory = field(default_factory=lambda: Memory(0, ""))

    def batch(self, indices: Sequence[int], seed: int) -> Tensor:
        """Generate one batch of pictures, classes taking turns."""
        classes = range(self.recipe.data.num_classes)
        pictures = list(generate(self.engine, self.tokenizer, classes=classes, seed=seed, batches=[indices]))
        return pictures[0].images

    def measurement(self, held_bytes: int) -> Measurement:
        """What came out, still without costs; `held_bytes` are the weights of all systems, engines and the judge.

        Peak memory is that of a process which holds this system alone.
        """
        others = held_bytes - sum(self.weights.values())
        measurement = Measurement(
            point=self.point,
            seconds_per_image=statistics.median(self.seconds),
            fastest=min(self.seconds),
            slowest=max(self.seconds),
            batches=len(self.seconds),
            flops_per_image=None,
            published_flops_per_image=None,
            roofline_seconds=None,
            weight_seconds=None,
            part_shares=self.shares,
            peak_memory_bytes=max(0, self.peak.peak_bytes - others),
        )
        if self.tally is None:
            return measurement
        fid, spread = self.tally.distance()
        return replace(
            measurement,
            fid=fid,
            fid_spread=spread,
            fid_images=self.tally.count,
            fid_name=self.tally.name,
            fid_protocol=self.tally.judge.protocol,
        )


@dataclass(frozen=True)
class Extent:
    """How long to measure: rounds of one batch per point, the first untimed; fewer when `seconds` run out.

    Of the pictures of all rounds the first `num` are judged.
    """

    rounds: int
    seconds: float | None
    seed: int
    num: int


def run_rounds(contenders: Sequence[Contender], extent: Extent, on_batch: Callable[[], None]) -> None:
    """Let every contender generate batch after batch; at least one round is timed."""
    start = time.monotonic()
    for number in range(extent.rounds):
        began = time.monotonic()
        for contender in contenders:
            size = contender.point.batch_size
            run_batch(contender, range(number * size, (number + 1) * size), extent, is_first=number == 0)
            on_batch()
        now = time.monotonic()
        if extent.seconds is not None and number >= 1 and now - start + (now - began) > extent.seconds:
            return


def run_batch(contender: Contender, indices: range, extent: Extent, *, is_first: bool) -> None:
    """Generate, time and judge one batch; the first one warms up and shows the memory instead."""
    device, images = contender.engine.device, []

    def generate_batch() -> None:
        images.append(contender.batch(indices, extent.seed))

    if is_first:
        release_memory()
        with peak_memory(device) as memory:
            for _ in range(2 if device.type == "cuda" else 1):  # the second time a GPU records what comes again
                generate_batch()
        contender.peak = memory
    else:
        contender.seconds.append(timed(generate_batch, device) / len(indices))
    if contender.tally is not None and indices.start < extent.num:
        contender.tally.add(images[0][: extent.num - indices.start])


def release_memory() -> None:
    """Give memory that is free but kept back to the system, so that a point does not inherit another's peak."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    release_freed_memory()


def measure_shares(contender: Contender, seed: int) -> None:
    """Run one more batch with a clock on every part; the parts' shares of the batch's time go to `shares`."""
    with PartClock(parts_of(contender), contender.engine.device) as clock:
        seconds = timed(lambda: contender.batch(range(contender.point.batch_size), seed), contender.engine.device)
    contender.shares = {name: spent / seconds for name, spent in clock.seconds.items()}


def parts_of(contender: Contender) -> dict[str, list[tuple[object, str]]]:
    """Which methods make up which part; a DiT and a backbone that is causal or recorded are all decoder."""
    model = contender.engine.model
    tokenizer = {"tokenizer": [(contender.tokenizer, "decode")]}
    if not hasattr(model, "head"):
        return {"decoder": [(model, "denoise")]} | tokenizer
    if hasattr(model.backbone, "encode"):
        owners = (model.backbone, CachedBackbone)  # which an approximation may put in the backbone's place
        backbone = {"encoder": [(each, "encode") for each in owners], "decoder": [(each, "decode") for each in owners]}
    else:
        backbone = {"decoder": [(model.backbone, "predict"), (FeatureCache, "predict")]}
    methods = [name for name in ("sample", "log_probs") if hasattr(model.head, name)]
    return backbone | {"head": [(model.head, name) for name in methods]} | tokenizer
