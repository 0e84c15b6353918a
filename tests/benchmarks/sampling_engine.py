"""Sampling engines side by side: python tests/benchmarks/sampling_engine.py --batch-size 1 [--help]

Every candidate generates with random MAR weights (modulations and output included, which training would have moved
from zero), in a process of its own that starts as its command would start it; they take turns, so only ratios between
them are read. All are timed at every `--every`-th of the recipe's AR steps and the sum is scaled to all of them, but
presets of approximations, whose AR steps depend on each other, run whole generations.

`as-published` is the published way of working in our modules (see as_published.py; bf16 is autocast's there). With
MARCLI_PUBLISHED_MAR=FOLDER the published code of that folder generates too; on a CPU its `.cuda()` is made to do
nothing, on a GPU it runs in fp16 autocast as its evaluation does.

The clock `cpu` counts the process's processor time: with --threads 1 it can be read on a machine shared with others.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from marcli.model.build import build_model
from marcli.recipe.approximate import PRESETS, overrides_of
from marcli.recipe.reader import read_recipe, shipped_recipe
from marcli.recipe.schema import Recipe
from marcli.runtime.accelerator import start_processes
from marcli.sampling.engine.base import Engine
from marcli.sampling.engine.build import build_engine
from marcli.sampling.system import System
from tests.benchmarks.as_published import AsPublished
from tests.benchmarks.contestants import started

PUBLISHED_NAMES = {"mar_b": "mar_base", "mar_l": "mar_large", "mar_h": "mar_huge"}
Seconds = dict[str, float]
Turn = Callable[[int], Seconds]  # of a batch size
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def random_model(recipe: Recipe) -> nn.Module:
    """Fresh weights; those that start at zero are given values, so that nothing is multiplied by zero."""
    torch.manual_seed(0)
    model = build_model(recipe)
    without_zeros(model)
    return model.eval().requires_grad_(False)


def without_zeros(model: nn.Module) -> None:
    """Give random values to parameters that are zero."""
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)


def settings(options: argparse.Namespace) -> list[str]:
    """The benchmark's recipe overrides."""
    values = {"cfg": options.cfg, "steps": options.steps, "diffusion_steps": options.diffusion_steps}
    return [f"sample.{name}={value}" for name, value in values.items()]


def our_turn(options: argparse.Namespace, name: str, precision: str) -> Turn:
    """An engine or a preset, started as `marcli sample` starts it."""
    device = start_processes(precision=precision, gpus="0" if options.device == "cpu" else "1").device
    recipe = read_recipe(shipped_recipe(options.recipe), settings(options))
    model = random_model(recipe)
    if name in PRESETS:
        recipe = read_recipe(shipped_recipe(options.recipe), [*settings(options), *overrides_of(name)])
    system = System("random", recipe, model, None, "raw", None, "random weights")
    engine_name = "fast" if name in PRESETS else name
    engine = build_engine(system, name=engine_name, device=device, precision=precision, compiled=True)
    if name in PRESETS or options.every == 1:
        return partial(whole_generation, engine, options)
    return partial(some_steps, engine, options)


@torch.inference_mode()
def some_steps(engine: Engine, options: argparse.Namespace, batch: int) -> Seconds:
    """Seconds of transformer and head at some AR steps, from random known tokens, scaled to all steps."""
    model, now = engine.model, partial(settled, engine.device, options.clock)
    tape = engine.draw_tape(seed=0, indices=range(batch)).to(engine.device)
    condition = model.condition(torch.arange(batch, device=engine.device))
    guided = options.cfg > 1
    conditions = torch.cat([condition, model.null_class.expand_as(condition)]) if guided else condition
    orders = tape.order.repeat(2 if guided else 1, 1)
    steps = engine.schedule[options.every // 2 :: options.every]
    seconds = {"transformer": 0.0, "head": 0.0}
    for step in steps:
        known = torch.randn(len(orders), step.known, model.token_dim, device=engine.device)
        noise = tape.noise[:, step.known : step.known + step.count]
        start = now()
        z = model.predict(known, orders, conditions, num_wanted=step.count, cache=None)
        middle = now()
        model.head.sample(z[:batch], z[batch:] if guided else None, step.guidance, noise, engine.settings)
        seconds["transformer"] += middle - start
        seconds["head"] += now() - middle
    return {part: value * len(engine.schedule) / len(steps) for part, value in seconds.items()}


def whole_generation(engine: Engine, options: argparse.Namespace, batch: int) -> Seconds:
    """Seconds of a generation."""
    tape = engine.draw_tape(seed=0, indices=range(batch)).to(engine.device)
    labels = torch.arange(batch, device=engine.device)
    start = settled(engine.device, options.clock)
    engine.latents(labels=labels, tape=tape, on_step=None)
    return {"whole": settled(engine.device, options.clock) - start}


class TimedParts:
    """Times the parts of a sampler at some of its AR steps; at the others, zeros take the place of their results."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.now = options, partial(settled, torch.device(options.device), options.clock)
        self.seconds: dict[str, float] = {}

    def watch(self, owner: object, method: str, part: str, zeros: Callable[..., Tensor | None]) -> None:
        """Time `owner.method`, called once per AR step, as `part`; `zeros` are its result where it is left out."""
        function, calls, every = getattr(owner, method), itertools.count(), self.options.every

        def watched(*arguments: Any, **more: Any) -> Any:
            if next(calls) % self.options.steps % every != every // 2:
                return zeros(*arguments)
            start = self.now()
            result = function(*arguments, **more)
            self.seconds[part] += self.now() - start
            return result

        setattr(owner, method, watched)

    def turn(self, generate: Callable[[Tensor], object], batch: int) -> Seconds:
        """Seconds of each part in one generation of a batch, scaled to all steps."""
        self.seconds = {"transformer": 0.0, "head": 0.0}
        generate(torch.arange(batch, device=self.options.device))
        timed = len(range(self.options.every // 2, self.options.steps, self.options.every))
        return {part: value * self.options.steps / timed for part, value in self.seconds.items()}


def as_published_turn(options: argparse.Namespace, precision: str) -> Turn:
    """The published way of working."""
    recipe = read_recipe(shipped_recipe(options.recipe), settings(options))
    model = random_model(recipe).requires_grad_(True)  # autocast keeps the converted weights of such parameters
    sampler, parts = AsPublished(model.to(options.device), recipe), TimedParts(options)
    parts.watch(sampler, "z_of_all", "transformer", lambda tokens, hidden, c: c.new_zeros(*hidden.shape, c.shape[-1]))
    parts.watch(sampler, "draw", "head", lambda z, guidance: z.new_zeros(len(z), model.token_dim))

    def generate(labels: Tensor) -> None:
        with torch.autocast(options.device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            sampler.tokens(labels)

    return partial(parts.turn, generate)


def published_turn(options: argparse.Namespace, folder: str) -> Turn:
    """The published sampler."""
    sys.path.insert(0, folder)
    if options.device == "cpu":
        torch.Tensor.cuda = lambda self, *args, **kwargs: self
    from models import mar

    model = getattr(mar, PUBLISHED_NAMES[options.recipe])(
        img_size=256, class_num=1000, diffloss_w=1024, diffloss_d=6, num_sampling_steps=str(options.diffusion_steps)
    )
    without_zeros(model.eval())
    model.to(options.device)
    width, parts = model.decoder_embed.out_features, TimedParts(options)
    parts.watch(model, "forward_mae_encoder", "transformer", lambda tokens, mask, condition: None)
    parts.watch(model, "forward_mae_decoder", "transformer", lambda x, mask: mask.float().new_zeros(*mask.shape, width))
    parts.watch(model.diffloss, "sample", "head", lambda z, *_: z.new_zeros(len(z), model.token_embed_dim))

    @torch.inference_mode()
    def generate(labels: Tensor) -> None:
        with torch.autocast("cuda", dtype=torch.float16, enabled=options.device == "cuda"):
            model.sample_tokens(bsz=len(labels), num_iter=options.steps, cfg=options.cfg, labels=labels)

    return partial(parts.turn, generate)


def settled(device: torch.device, clock: str) -> float:
    """The time once the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return CLOCKS[clock]()


def contestant(
    options: argparse.Namespace, candidate: str, folder: str | None
) -> Callable[[int], tuple[Seconds, int | None]]:
    """A candidate in its own process: its turns, and the most bytes of GPU memory that it has held until then."""
    torch.set_num_threads(options.threads)
    turn = turn_of(options, candidate, folder)
    return lambda batch: (turn(batch), torch.cuda.max_memory_reserved() if options.device == "cuda" else None)


def turn_of(options: argparse.Namespace, candidate: str, folder: str | None) -> Turn:
    """What a candidate does."""
    name, _, precision = candidate.rpartition("-")
    if name == "published":
        return published_turn(options, folder)
    if name == "as-published":
        return as_published_turn(options, precision)
    return our_turn(options, name, precision)


def main() -> None:
    """Print one line per batch size and candidate, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="mar_b")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1], help="from the smallest to the largest")
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=64, help="AR steps")
    parser.add_argument("--diffusion-steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=16, help="measure every n-th AR step; 1: whole generations")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds, after those that warm up")
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
    folder = os.environ.get("MARCLI_PUBLISHED_MAR")
    names = options.candidates
    if folder:
        names = [*names, "published-fp32" if options.device == "cpu" else "published-fp16"]
    records = {}
    with contextlib.ExitStack() as stack:
        turns = {name: stack.enter_context(started(contestant, options, name, folder)) for name in names}
        for batch in options.batch_size:
            records[str(batch)] = measured(options, turns, batch)
    load = Path("/proc/loadavg")
    context = {**vars(options), "load": load.read_text().split()[:3] if load.exists() else None}
    print(json.dumps({"settings": context, "results": records}))


def measured(options: argparse.Namespace, turns: dict[str, Callable[..., Any]], batch: int) -> dict[str, dict]:
    """Let the candidates take turns at a batch; print and return the medians, and how often each fits into the time of
    the first and of the published code."""
    rounds: dict[str, list[Seconds]] = {name: [] for name in turns}
    held: dict[str, int | None] = {}
    dropped = 2 if options.device == "cuda" else 1  # the second round records what comes again
    for number in range(dropped + options.rounds):
        for name, turn in turns.items():
            parts, held[name] = turn(batch)
            if number >= dropped:
                rounds[name].append(parts)
    records, first = {}, next(iter(rounds))
    for name, runs in rounds.items():
        parts = {part: statistics.median(run[part] for run in runs) for part in runs[0]}
        yardsticks = [other for other in rounds if other == first or other.startswith("published")]
        times = {
            other: statistics.median(
                sum(theirs.values()) / sum(ours.values()) for theirs, ours in zip(rounds[other], runs, strict=True)
            )
            for other in yardsticks
        }
        records[name] = {"seconds": sum(parts.values()), **parts, "times": times, "held_bytes": held[name]}
        detail = ", ".join(f"{part} {value:.2f}" for part, value in parts.items())
        ratios = ", ".join(f"{ratio:.2f}x of {other}" for other, ratio in times.items())
        memory = "" if held[name] is None else f"  {held[name] / 2**30:.2f} GiB"
        line = f"batch {batch:3d} {name:18s} {sum(parts.values()):8.2f} s ({detail})  {ratios}{memory}"
        print(line, flush=True)
    return records


if __name__ == "__main__":
    main()
