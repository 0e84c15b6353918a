"""Sampling engines side by side: python tests/benchmarks/sampling_engine.py --batch-size 1 [--help]

Every candidate generates with the same random MAR weights (modulations and output included, which training would
have moved from zero) in one process, candidates taking turns, so that only ratios between them are read. `plain`
and `fast` are measured at every `--every`-th of the recipe's AR steps, from random known tokens, and the sum is
scaled to all steps; presets of approximations, whose AR steps depend on each other, run whole generations, and so
does `as-published`, the published way of working (see as_published.py; bf16 is autocast's there).

With MARCLI_PUBLISHED_MAR=FOLDER the published code of that folder generates too, at `--published-steps` AR steps,
beside the plain engine at as many; on a CPU its `.cuda()` is made to do nothing, on a GPU it runs in fp16 autocast
as its evaluation does, beside plain bf16.

The clock `cpu` counts the process's processor time: with --threads 1 it can be read on a machine shared with others.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from marcli.model.build import build_model
from marcli.recipe.approximate import PRESETS, overrides_of
from marcli.recipe.reader import read_recipe, shipped_recipe
from marcli.recipe.schema import Recipe
from marcli.sampling.engine.build import build_engine
from marcli.sampling.system import System

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.as_published import AsPublished

PUBLISHED_NAMES = {"mar_b": "mar_base", "mar_l": "mar_large", "mar_h": "mar_huge"}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def random_model(recipe: Recipe) -> nn.Module:
    """Fresh weights; those that start at zero are given values, so that nothing is multiplied by zero."""
    torch.manual_seed(0)
    model = build_model(recipe)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model.eval().requires_grad_(False)


def engine_for(options: argparse.Namespace, model: nn.Module, name: str, precision: str, overrides: list[str]):
    """An engine over the shared weights with the benchmark's settings and further overrides."""
    recipe = read_recipe(shipped_recipe(options.recipe), [*settings(options), *overrides])
    system = System("random", recipe, model, None, "raw", None, "random weights")
    device = torch.device(options.device)
    return build_engine(system, name=name, device=device, precision=precision, compiled=True)


def settings(options: argparse.Namespace) -> list[str]:
    """The benchmark's recipe overrides."""
    values = {"cfg": options.cfg, "steps": options.steps, "diffusion_steps": options.diffusion_steps}
    return [f"sample.{name}={value}" for name, value in values.items()]


class SampledSteps:
    """The time of a generation, from some of its AR steps."""

    def __init__(self, engine, options: argparse.Namespace) -> None:
        self.engine, self.options = engine, options
        self.tape = engine.draw_tape(seed=0, indices=range(options.batch_size)).to(engine.device)
        self.steps = engine.schedule[options.every // 2 :: options.every]
        self.scale = len(engine.schedule) / len(self.steps)
        condition = engine.model.condition(torch.arange(options.batch_size, device=engine.device))
        null = engine.model.null_class.expand_as(condition)
        self.conditions = torch.cat([condition, null]) if options.cfg > 1 else condition
        self.orders = self.tape.order.repeat(2 if options.cfg > 1 else 1, 1)

    @torch.inference_mode()
    def __call__(self, clock: Callable[[], float]) -> dict[str, float]:
        """Seconds of transformer and head, scaled to all steps."""
        model, batch = self.engine.model, self.options.batch_size
        seconds = {"transformer": 0.0, "head": 0.0}
        for step in self.steps:
            known = torch.randn(len(self.orders), step.known, model.token_dim, device=self.engine.device)
            noise = self.tape.noise[:, step.known : step.known + step.count]
            start = clock()
            z = model.predict(known, self.orders, self.conditions, num_wanted=step.count, cache=None)
            middle = settle(self.engine.device, clock)
            model.head.sample(
                z[:batch], z[batch:] if self.options.cfg > 1 else None, step.guidance, noise, self.engine.settings
            )
            seconds["transformer"] += middle - start
            seconds["head"] += settle(self.engine.device, clock) - middle
        return {part: value * self.scale for part, value in seconds.items()}


class WholeGeneration:
    """The time of a generation, by running it."""

    def __init__(self, engine, options: argparse.Namespace) -> None:
        self.engine, self.labels = engine, torch.arange(options.batch_size, device=engine.device)
        self.tape = engine.draw_tape(seed=0, indices=range(options.batch_size)).to(engine.device)

    def __call__(self, clock: Callable[[], float]) -> dict[str, float]:
        start = clock()
        self.engine.latents(labels=self.labels, tape=self.tape, on_step=None)
        return {"whole": settle(self.engine.device, clock) - start}


class PublishedWay:
    """The published way of working on weights of its own."""

    def __init__(self, options: argparse.Namespace, recipe: Recipe, precision: str) -> None:
        self.device, self.half = torch.device(options.device), precision == "bf16"
        model = random_model(recipe).requires_grad_(True)  # autocast keeps the converted weights of such parameters
        self.sampler = AsPublished(model.to(self.device), recipe)
        self.labels = torch.arange(options.batch_size, device=self.device)

    def __call__(self, clock: Callable[[], float]) -> dict[str, float]:
        start = clock()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
            self.sampler.tokens(self.labels)
        return {"whole": settle(self.device, clock) - start}


class Published:
    """The published sampler on its own random weights."""

    def __init__(self, folder: str, options: argparse.Namespace) -> None:
        sys.path.insert(0, folder)
        self.device = torch.device(options.device)
        if self.device.type == "cpu":
            torch.Tensor.cuda = lambda self, *args, **kwargs: self
        from models import mar

        self.options = options
        self.model = getattr(mar, PUBLISHED_NAMES[options.recipe])(
            img_size=256, class_num=1000, diffloss_w=1024, diffloss_d=6, num_sampling_steps=str(options.diffusion_steps)
        ).eval()
        for parameter in self.model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
        self.model.to(self.device)

    @torch.inference_mode()
    def __call__(self, clock: Callable[[], float]) -> dict[str, float]:
        batch, start = self.options.batch_size, clock()
        labels = torch.arange(batch, device=self.device)
        with torch.autocast("cuda", dtype=torch.float16, enabled=self.device.type == "cuda"):  # as its evaluation does
            self.model.sample_tokens(
                bsz=batch, num_iter=self.options.published_steps, cfg=self.options.cfg, labels=labels
            )
        return {"whole": settle(self.device, clock) - start}


def settle(device: torch.device, clock: Callable[[], float]) -> float:
    """The time once the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock()


def candidates(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[Callable[[], float]], dict[str, float]]]]:
    """What is compared, the yardstick first."""
    recipe = read_recipe(shipped_recipe(options.recipe), settings(options))
    model = random_model(recipe)
    measured = SampledSteps if options.every > 1 else WholeGeneration
    for candidate in options.candidates:
        name, _, precision = candidate.rpartition("-")
        if name == "as-published":
            yield candidate, PublishedWay(options, recipe, precision)
        elif name in PRESETS:
            yield candidate, WholeGeneration(engine_for(options, model, "fast", precision, overrides_of(name)), options)
        else:
            yield candidate, measured(engine_for(options, model, name, precision, []), options)
    folder = os.environ.get("MARCLI_PUBLISHED_MAR")
    if folder:
        shorter = [f"sample.steps={options.published_steps}"]
        precision, theirs = ("fp32", "fp32") if options.device == "cpu" else ("bf16", "fp16 autocast")
        plain = engine_for(options, model, "plain", precision, shorter)
        yield f"plain-{precision}, {options.published_steps} steps", WholeGeneration(plain, options)
        yield f"published-{theirs}, {options.published_steps} steps", Published(folder, options)


def main() -> None:
    """Print one line per candidate, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="mar_b")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=64, help="AR steps")
    parser.add_argument("--diffusion-steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=16, help="measure every so manieth AR step; 1: whole generations")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds, after one that is dropped")
    parser.add_argument("--published-steps", type=int, default=8)
    parser.add_argument(
        "--candidates",
        nargs="+",
        default=["plain-fp32", "fast-fp32", "fast-bf16", "turbo-bf16"],
        metavar="plain|fast|PRESET|as-published-fp32|bf16",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    compared = dict(candidates(options))
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in compared}
    for number in range(options.rounds + 1):
        for name, run in compared.items():
            parts = run(CLOCKS[options.clock])
            if number > 0:
                rounds[name].append(parts)
    report(options, rounds)


def report(options: argparse.Namespace, rounds: dict[str, list[dict[str, float]]]) -> None:
    """Medians, and how often each candidate fits into the yardstick's time."""
    load = Path("/proc/loadavg")
    records = {}
    for name, runs in rounds.items():
        parts = {part: statistics.median(run[part] for run in runs) for part in runs[0]}
        yardstick = next((first for first in rounds if first.partition(",")[2] == name.partition(",")[2]), name)
        ratios = [
            sum(theirs.values()) / sum(ours.values()) for theirs, ours in zip(rounds[yardstick], runs, strict=True)
        ]
        records[name] = {"seconds": sum(parts.values()), **parts, "ratio": statistics.median(ratios)}
        detail = ", ".join(f"{part} {value:.2f}" for part, value in parts.items())
        print(f"{name:28s} {sum(parts.values()):8.2f} s ({detail})  {statistics.median(ratios):.2f}x of {yardstick}")
    context = {**vars(options), "load": load.read_text().split()[:3] if load.exists() else None}
    print(json.dumps({"settings": context, "results": records}))


if __name__ == "__main__":
    main()
