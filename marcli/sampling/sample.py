"""A trained system to a folder of pictures: what `marcli sample` does."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from marcli import __version__
from marcli.errors import StoppedError, UsageError
from marcli.recipe.approximate import departures
from marcli.recipe.schema import Recipe
from marcli.runtime.accelerator import Processes
from marcli.runtime.progress import Progress
from marcli.runtime.stop import StopRequest
from marcli.sampling.album import GRID_PICTURES, Album, read_grid_pictures, write_grid, write_npz
from marcli.sampling.animation import Animation
from marcli.sampling.engine.base import Engine
from marcli.sampling.folder import finish_folder, missing_batches, own_folder
from marcli.sampling.generate import class_of, generate, micro_batches
from marcli.sampling.system import Named, System

NAMED = {"steps", "cfg", "temperature", "diffusion_steps"}  # settings that every default folder names
LONGEST_NAME = 150  # characters of a folder's name; a longer one ends in a hash of it


def sample(
    system: System,
    engine: Engine,
    processes: Processes,
    *,
    out: Path,
    seed: int,
    classes: Sequence[int],
    npz: bool,
    animate: bool,
) -> dict[str, Any]:
    """Generate the first `sample.num` pictures of `seed` and write PNGs, grid.png and samples.json; return that record.

    All processes call it; each writes the pictures of its micro-batches, but for those that an interrupted call with
    the same plan left. Raises StoppedError when asked to stop, with whole pictures on disk and no samples.json;
    UsageError when `out` holds pictures of another origin, MarcliError when another call is writing there.
    """
    num = system.recipe.sample.num
    plan = sample_plan(system, engine, seed=seed, classes=classes, precision=processes.precision)
    with own_folder(out, plan, num=num) if processes.is_main else nullcontext():
        processes.wait()
        animation = Animation(system, out / "animation.gif") if animate and processes.is_main else None
        write_pictures(system, engine, processes, animation, out=out, plan=plan)
        processes.wait()
        labels = [class_of(index, classes) for index in range(num)]
        images = [{"index": i, "seed": seed, "class": label} for i, label in enumerate(labels)]
        record = {**plan, "num": num, "images": images}
        if processes.is_main:
            if animation is not None:
                animation.write()
            write_grid(read_grid_pictures(out, num), out / "grid.png", columns=grid_columns(num))
            if npz:
                write_npz(out, labels, out / "samples.npz")
            finish_folder(out, record)
    return record


def write_pictures(
    system: System,
    engine: Engine,
    processes: Processes,
    animation: Animation | None,
    *,
    out: Path,
    plan: Mapping[str, Any],
) -> None:
    """Write this process's share of a plan's pictures that are missing in `out`; raises StoppedError when asked to."""
    settings, world_size = system.recipe.sample, processes.world_size
    mine = micro_batches(settings.num, settings.batch_size)[processes.rank :: world_size]
    batches = missing_batches(mine, out, batch_size=settings.batch_size)
    if animation is not None and mine[0] not in batches:
        batches.insert(0, mine[0])
    system.tokenizer.to(engine.device, memory_format=torch.channels_last)
    made = generate(
        engine,
        system.tokenizer,
        classes=plan["classes"],
        seed=plan["seed"],
        batches=batches,
        on_step=None if animation is None else animation.watch,
    )
    total = sum(map(len, mine))
    there = total - sum(map(len, batches))
    title = "sample" if world_size == 1 else "sample, this process's share"
    shown = Progress(title=title, total=total, unit="pictures", shown=processes.is_main, done=there)
    with StopRequest() as stop, Album(out) as album, shown as progress:
        for pictures in made:
            album.add(pictures)
            progress.advance(len(pictures.indices))
            if stop.requested:
                whose = "" if world_size == 1 else ", this process's share,"
                raise StoppedError(
                    f"Stopped by {stop.signal_name} with {progress.done} of {total} pictures{whose} in {out}; "
                    "the same command makes the rest"
                )


def grid_columns(num: int) -> int:
    """Columns of a grid: ten for the usual multiple of ten classes, else as square as it gets."""
    shown = min(num, GRID_PICTURES)
    return 10 if shown % 10 == 0 else max(1, round(shown**0.5))


def sample_plan(system: System, engine: Engine, *, seed: int, classes: Sequence[int], precision: str) -> dict[str, Any]:
    """Everything that decides the pictures, whatever their number, as JSON values."""
    return {
        "system": system.name,
        "weights": system.weights,
        "weights_sha256": system.weights_sha256,
        "tokenizer": system.tokenizer.fingerprint,
        "note": system.note,
        "marcli": __version__,
        "torch": torch.__version__,
        "engine": engine.name,
        "precision": precision,
        "device": engine.device.type,
        "seed": seed,
        "classes": list(classes),
        "batch_size": system.recipe.sample.batch_size,
        "steps": system.recipe.sampling_steps,
        "settings": system.recipe.sample.model_dump(mode="json", exclude={"num"}),
    }


def chosen_classes(text: str, recipe: Recipe) -> list[int]:
    """Parse `--classes`: numbers such as 207,360, or 'all'; raises UsageError outside 0..num_classes-1."""
    count = recipe.data.num_classes
    if text == "all":
        return list(range(count))
    try:
        classes = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--classes is {text!r}: give class numbers such as 207,360, or all") from None
    wrong = [number for number in classes if not 0 <= number < count]
    if wrong:
        raise UsageError(f"--classes names {wrong[0]}, but this model has classes 0 to {count - 1}")
    return classes


def default_folder(system: Named | System, *, seed: int, classes: Sequence[int]) -> Path:
    """Where pictures go unless told otherwise: in the run, else under samples/; the name tells seed and settings."""
    s = system.recipe.sample
    steps = f"steps{system.recipe.sampling_steps}-" if system.recipe.sampling_steps else ""
    name = f"{system.weights}-{steps}diffusion{s.diffusion_steps}-cfg{s.cfg:g}-t{s.temperature:g}-seed{seed}"
    name += "".join(f"-{each.replace(' ', '')}" for each in departures(s.approximate))
    others = s.model_dump(exclude=NAMED | {"approximate", "num", "batch_size"}, exclude_defaults=True)
    name += "".join(f"-{key}{value}" for key, value in others.items())
    if list(classes) != list(range(system.recipe.data.num_classes)):
        name += "-classes" + "+".join(map(str, classes))
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    run = Path(system.name)
    return run / "samples" / name if run.is_dir() else Path("samples") / system.recipe.name / name
