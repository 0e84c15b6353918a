"""Figure 6 of the paper: speed and quality of several systems over their step counts, in one go.

    systems -> variants (plan) -> contenders -> rounds (measure) -> measurements -> report
"""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from marcli import __version__
from marcli.bench.baseline import FORMAT
from marcli.bench.cost import plain_cost, published_cost
from marcli.bench.measure import Contender, Extent, measure_shares, measurements_of, run_rounds
from marcli.bench.plan import Variant
from marcli.bench.points import Measurement, point_of
from marcli.bench.quality import Judge, Tally
from marcli.bench.roofline import Machine, roofline_seconds
from marcli.runtime.progress import Progress
from marcli.sampling.engine.build import EngineName, build_engine
from marcli.sampling.system import System

CLASS_OF_ENGINE = {"plain": "plain", "fast": "lossless"}
SLACK = 4  # measured over least possible time of a small model on a CPU, roughly
WARM_AND_TIMED = 2


@dataclass(frozen=True)
class Entry:
    """A system on the device with the variants of it that are to be measured."""

    system: System
    variants: Sequence[Variant]
    is_random: bool


def on_device(system: System, device: torch.device, dtype: torch.dtype) -> System:
    """The system on `device`, its model in `dtype`; tokenizers stay in float32."""
    return replace(
        system,
        model=system.model.to(device=device, dtype=dtype),
        tokenizer=system.tokenizer.to(device),
    )


def weight_bytes(system: System) -> int:
    """Bytes of all weights of model and tokenizer."""
    modules = (system.model, system.tokenizer)
    return sum(tensor.nbytes for module in modules for tensor in (*module.parameters(), *module.buffers()))


def contenders_of(
    entries: Sequence[Entry], *, engines: Sequence[EngineName], device: torch.device, precision: str, judge: Judge | None
) -> tuple[list[Contender], list[str]]:
    """One contender per variant and engine, and lines on engines a system cannot use.

    Systems with random weights are not judged.
    """
    contenders, notes = [], []
    for entry in entries:
        system, size = entry.system, weight_bytes(entry.system)
        usable, without = engines_for(system, engines)
        notes += [f"{system.name}: the {name} engine cannot run a DiT" for name in without]
        built = {name: build_engine(system, name=name, device=device, precision=precision) for name in usable}
        for variant, engine in itertools.product(entry.variants, built.values()):
            point = point_of(
                variant.recipe,
                system=system.name,
                engine=engine.name,
                engine_class=CLASS_OF_ENGINE[engine.name],
                swept=variant.swept,
                is_default=variant.is_default,
            )
            contender = Contender(
                point=point,
                engine=engine.under(variant.recipe),
                recipe=variant.recipe,
                tokenizer=system.tokenizer,
                weight_bytes=size,
                tally=Tally(judge) if judge is not None and not entry.is_random else None,
            )
            contenders.append(contender)
    return contenders, notes


def engines_for(system: System, engines: Sequence[EngineName]) -> tuple[list[EngineName], list[EngineName]]:
    """The engines a system can use, the plain one where there is no other, and those it cannot."""
    if system.recipe.model.backbone.kind != "dit" or "fast" not in engines:
        return list(engines), []
    return [name for name in engines if name != "fast"] or ["plain"], ["fast"]


def measure(contenders: Sequence[Contender], extent: Extent, machine: Machine, *, shown: bool) -> list[Measurement]:
    """Run the rounds, then one batch each for the shares; return what came out, with costs."""
    batches = (extent.rounds + 1) * len(contenders)
    with Progress(title="bench", total=batches, unit="batches", shown=shown) as progress:
        run_rounds(contenders, extent, progress.advance)
        for contender in contenders:
            measure_shares(contender, extent.seed)
            progress.advance()
    others = {contender.point.system: contender.weight_bytes for contender in contenders}
    return [with_cost(each.measurement(others), each, machine) for each in contenders]


def with_cost(measurement: Measurement, contender: Contender, machine: Machine) -> Measurement:
    """Add what the plain algorithm and the published code compute per image; an engine's own cost is not known yet."""
    recipe, batch_size = contender.recipe, contender.point.batch_size
    cost = plain_cost(recipe, batch_size=batch_size)
    if contender.point.engine_class == "approximate":
        return replace(measurement, published_flops_per_image=published_cost(recipe).flops)
    return replace(
        measurement,
        flops_per_image=cost.flops,
        published_flops_per_image=published_cost(recipe).flops,
        roofline_seconds=roofline_seconds(cost, machine),
    )


def expected_seconds(variants: Sequence[Variant], machine: Machine, batch_size: int) -> float:
    """Rough time of one round of batches."""
    flops = sum(plain_cost(variant.recipe, batch_size=batch_size).flops for variant in variants)
    return SLACK * flops * batch_size / machine.flops_per_second


def fitting_batch_size(variants: Sequence[Variant], machine: Machine, *, wanted: int, seconds: float) -> int:
    """The largest of wanted, wanted / 2, ... at which a warm-up and a timed round take less than `seconds`."""
    size = wanted
    while size > 1 and WARM_AND_TIMED * expected_seconds(variants, machine, size) > seconds:
        size //= 2
    return size


def affordable(variants: Sequence[Variant], machine: Machine, *, batch_size: int, seconds: float) -> list[Variant]:
    """The variants with the most expensive left out until a warm-up and a timed round fit; at least two stay."""
    kept = sorted(variants, key=lambda variant: plain_cost(variant.recipe, batch_size=batch_size).flops)
    while len(kept) > 2 and WARM_AND_TIMED * expected_seconds(kept, machine, batch_size) > seconds:
        kept.pop()
    return [variant for variant in variants if variant in kept]


def report_of(
    measurements: Sequence[Measurement],
    *,
    entries: Sequence[Entry],
    machine: Machine,
    precision: str,
    seed: int,
    memory_counts: str,
    quality: str,
    notes: Sequence[str],
) -> dict[str, Any]:
    """Everything that `bench.json` holds."""
    return {
        "format": FORMAT,
        "command": " ".join(["marcli", *sys.argv[1:]]),
        "marcli": __version__,
        "torch": torch.__version__,
        "device": machine.name,
        "threads": machine.threads,
        "precision": precision,
        "seed": seed,
        "machine": {
            "flops_per_second": machine.flops_per_second,
            "bytes_per_second": machine.bytes_per_second,
        },
        "systems": [
            {
                "name": entry.system.name,
                "weights": entry.system.weights,
                "weights_sha256": entry.system.weights_sha256,
                "note": entry.system.note,
                "recipe": entry.system.recipe.model_dump(mode="json"),
            }
            for entry in entries
        ],
        "memory_counts": memory_counts,
        "quality": quality,
        "notes": list(notes),
        "points": [measurement.record() for measurement in measurements],
        "regressions": [],
    }


def small_print(report: dict[str, Any]) -> str:
    """What stands under the picture."""
    batches = " or ".join(map(str, sorted({point["batch_size"] for point in report["points"]})))
    images = sorted({point["fid_images"] for point in report["points"] if point["fid_images"]})
    counted = [f"{images[0]:,} images per point"] if images else []
    parts = [f"marcli {report['marcli']}", report["device"], report["precision"], f"batch {batches}", *counted]
    return ", ".join(parts)
