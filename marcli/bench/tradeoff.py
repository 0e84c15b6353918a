"""Figure 6 of the paper: speed and quality of several systems over their step counts, in one go.

entries -> contenders -> rounds (measure) -> measurements -> report
"""

import itertools
import sys
from collections import ChainMap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from marcli import __version__
from marcli.bench.baseline import FORMAT
from marcli.bench.budget import fit_to_time, judged_num, rounds_of
from marcli.bench.clock import bytes_held
from marcli.bench.cost import plain_cost, published_cost
from marcli.bench.entries import Entry, load_entries
from marcli.bench.measure import Contender, Extent, measure_shares, run_rounds
from marcli.bench.points import Measurement, point_of
from marcli.bench.quality import Judge, Tally, build_judge
from marcli.bench.request import Planned, Request
from marcli.bench.roofline import Machine, circumstances, measure_machine, roofline_seconds, weight_seconds
from marcli.errors import UsageError
from marcli.runtime.accelerator import Processes
from marcli.runtime.progress import Progress
from marcli.sampling.engine.build import build_engine, has_fast_engine
from marcli.sampling.naming import EngineName
from marcli.sampling.system import System

CLASS_OF_ENGINE = {"plain": "plain", "fast": "lossless"}


def run_bench(
    planned: Sequence[Planned], notes: Sequence[str], request: Request, processes: Processes
) -> tuple[dict[str, Any], list[Measurement]]:
    """Load, fit into the time, measure; return what `bench.json` will hold, and its measurements."""
    device, precision = processes.device, processes.precision
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    entries, of_systems = load_entries(planned, request)
    judge, quality = build_judge([entry.system for entry in entries if not entry.is_random], request, processes)
    machine = measure_machine(device, dtype)
    entries, of_time = fit_to_time(entries, request, machine)
    entries = [entry.on(device, dtype) for entry in entries]
    contenders, of_engines = contenders_of(
        entries, engines=request.engines, device=device, precision=precision, judge=judge
    )
    rounds = rounds_of(request, contenders[0].point.batch_size, judged=judge is not None)
    extent = Extent(rounds, request.seconds_of_rounds, request.seed, judged_num(request))
    measurements = measure(contenders, extent, machine, judge=judge, shown=processes.is_main)
    report = report_of(
        measurements,
        entries=entries,
        machine=machine,
        device=device,
        precision=precision,
        seed=request.seed,
        memory_counts=contenders[0].peak.counts,
        quality=quality,
        notes=[*notes, *of_systems, *of_time, *of_engines],
    )
    return report, measurements


def contenders_of(
    entries: Sequence[Entry],
    *,
    engines: Sequence[EngineName],
    device: torch.device,
    precision: str,
    judge: Judge | None,
) -> tuple[list[Contender], list[str]]:
    """One contender per variant and engine, and lines on engines a system cannot use.

    Systems with random weights are not judged.
    """
    contenders, notes = [], []
    for entry in entries:
        system = entry.system
        usable, without = engines_for(system, engines, device)
        notes += [f"{system.name}: the {name} engine has nothing for a DiT on a CPU" for name in without]
        built = [build_engine(system, name=each, device=device, precision=precision, compiled=True) for each in usable]
        built = {engine.name: engine for engine in built}  # auto and what it stands for are one
        for variant, engine in itertools.product(entry.variants, built.values()):
            point = point_of(
                variant.recipe,
                system=system.name,
                engine=engine.name,
                engine_class=CLASS_OF_ENGINE[engine.name],
                swept=variant.swept,
                is_default=variant.is_default,
                weights="random" if entry.is_random else system.weights,
            )
            contender = Contender(
                point=point,
                engine=engine.under(variant.recipe),
                recipe=variant.recipe,
                tokenizer=system.tokenizer,
                weights=bytes_held(system.model, system.tokenizer, engine.model),
                tally=Tally(judge) if judge is not None and not entry.is_random else None,
            )
            contenders.append(contender)
    keys = [contender.point.key for contender in contenders]
    if len(set(keys)) < len(keys):
        raise UsageError(f"{max(keys, key=keys.count)} would be measured twice: ask for every setting once")
    return contenders, notes


def engines_for(
    system: System, engines: Sequence[EngineName], device: torch.device
) -> tuple[list[EngineName], list[EngineName]]:
    """The engines a system can use, the plain one where there is no other, and those it cannot."""
    if has_fast_engine(system, device) or "fast" not in engines:
        return list(engines), []
    return [name for name in engines if name != "fast"] or ["plain"], ["fast"]


def measure(
    contenders: Sequence[Contender], extent: Extent, machine: Machine, *, judge: Judge | None, shown: bool
) -> list[Measurement]:
    """Run the rounds, then one batch each for the shares; return what came out, with costs."""
    batches = (extent.rounds + 1) * len(contenders)
    with Progress(title="bench", total=batches, unit="batches", shown=shown) as progress:
        run_rounds(contenders, extent, progress.advance)
        for contender in contenders:
            measure_shares(contender, extent.seed)
            progress.advance()
    judging = {} if judge is None else judge.weights
    held = sum(ChainMap(judging, *(contender.weights for contender in contenders)).values())
    return [with_cost(each.measurement(held), each, machine) for each in contenders]


def with_cost(measurement: Measurement, contender: Contender, machine: Machine) -> Measurement:
    """Add what the plain algorithm and the published code compute per image; an engine's own cost is not known yet."""
    recipe, batch_size = contender.recipe, contender.point.batch_size
    cost = plain_cost(recipe, batch_size=batch_size)
    if contender.point.engine_class == "approximate":
        return replace(measurement, published_flops_per_image=published_cost(recipe).flops, unpriced=cost.unknown)
    return replace(
        measurement,
        unpriced=cost.unknown,
        flops_per_image=cost.flops,
        published_flops_per_image=published_cost(recipe).flops,
        roofline_seconds=roofline_seconds(cost, machine),
        weight_seconds=weight_seconds(
            cost,
            machine,
            batch_size=batch_size,
            bytes_per_parameter=next(contender.engine.model.parameters()).element_size(),
        ),
    )


def report_of(
    measurements: Sequence[Measurement],
    *,
    entries: Sequence[Entry],
    machine: Machine,
    device: torch.device,
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
        **circumstances(device, precision),
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
        "missing": [],
    }


def small_print(report: dict[str, Any]) -> str:
    """What stands under the picture."""
    batches = " or ".join(map(str, sorted({point["batch_size"] for point in report["points"]})))
    images = sorted({point["fid_images"] for point in report["points"] if point["fid_images"]})
    counted = [f"{images[0]:,} images per point"] if images else []
    if images:  # the numbers stand where a distance does
        is_dit = any(point["family"] == "DiT" for point in report["points"])
        counted.append("numbers: AR steps" + (", of a DiT diffusion steps" if is_dit else ""))
    parts = [f"marcli {report['marcli']}", report["device"], report["precision"], f"batch {batches}", *counted]
    return ", ".join(parts)
