"""Where the parts of a system lie: of a run, a weights file, a published name, a shared run.

The recipe always comes with the weights (beside them, inside them, or known for a published file), so architecture is
never typed twice.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from marcli.errors import MarcliError, UsageError
from marcli.pretrained.converted import UNGUIDED, convert_once
from marcli.pretrained.hub import HUB_PREFIX, fetch_shared, find_model
from marcli.pretrained.manifest import check_manifest
from marcli.pretrained.published import MODELS
from marcli.recipe.reader import read_recipe, recipe_from_text, shipped_recipe
from marcli.recipe.schema import Recipe
from marcli.runtime.home import at_home
from marcli.runtime.rundir import RunDir, newest_run
from marcli.sampling.naming import FOREIGN, run_of_checkpoint, unknown
from marcli.sampling.weights import recipe_inside, sets_of

log = logging.getLogger("marcli")

DEFAULT = "mar-l"


@dataclass(frozen=True)
class Found:
    """Where the parts of a system lie; `source_sha256` is that of a file of others which became `weights`."""

    name: str
    recipe: Recipe
    weights: Path
    source_sha256: str | None
    tokenizer: Path | None
    note: str | None


def default_spec() -> str:
    """Return the newest run, else mar-l, and say which."""
    run = newest_run()
    if run is not None:
        log.info("Using %s, the newest run.", run.path)
        return str(run.path)
    log.warning("There is no run under runs/, so the published %s is used.", DEFAULT)
    return DEFAULT


def find(spec: str, overrides: Sequence[str]) -> Found:
    """Return where the parts of `spec` lie, fetching and converting what has to be."""
    if spec in MODELS:
        path, model = find_model(spec)
        return find_published(spec, path, overrides, note=model.note)
    if spec.startswith(HUB_PREFIX):
        folder = fetch_shared(spec.removeprefix(HUB_PREFIX), whole=True)
        check_manifest(folder, spec)
        return find_run(spec, folder, overrides)
    path = at_home(spec)
    if path.is_dir():
        return find_run(str(path), path, overrides)
    if (run := run_of_checkpoint(path)) is not None:
        raise UsageError(
            f"{spec} is part of a checkpoint, from which training goes on: give the run, {run}; it has weights to "
            "sample from when its training has ended."
        )
    if path.is_file() and path.suffix in (*FOREIGN, ".safetensors"):
        is_ours = path.suffix == ".safetensors" and bool(sets_of(path))
        return find_weights_file(path, overrides) if is_ours else find_published(spec, path, overrides, note=None)
    raise UsageError(unknown(spec, path))


def find_run(name: str, folder: Path, overrides: Sequence[str]) -> Found:
    run = RunDir(folder)
    if not run.recipe_path.is_file():
        raise UsageError(f"{name} is not a run: it has no recipe.yaml.")
    if not run.weights_path.is_file():
        raise MarcliError(
            f"{name} has no weights.safetensors yet: its training has not ended. If it was stopped, `marcli train` "
            "goes on with it."
        )
    return Found(
        name=name,
        recipe=read_recipe(run.recipe_path, overrides),
        weights=run.weights_path,
        source_sha256=None,
        tokenizer=run.tokenizer_path if run.tokenizer_path.is_dir() else None,
        note=None,
    )


def find_weights_file(path: Path, overrides: Sequence[str]) -> Found:
    """A run's weights file: its recipe lies beside it, or inside it."""
    beside = path.with_name("recipe.yaml")
    if beside.is_file():
        recipe = read_recipe(beside, overrides)
    elif (text := recipe_inside(path)) is not None:
        recipe = recipe_from_text(text, where=f"the recipe inside {path}", overrides=overrides)
    else:
        raise MarcliError(f"{path} does not say its recipe: put the run's recipe.yaml beside it.")
    tokenizer = path.with_name("tokenizer")
    return Found(
        name=str(path),
        recipe=recipe,
        weights=path,
        source_sha256=None,
        tokenizer=tokenizer if tokenizer.is_dir() else None,
        note=None,
    )


def find_published(name: str, path: Path, overrides: Sequence[str], *, note: str | None) -> Found:
    """A published file: converted once, its recipe is the shipped one."""
    converted = convert_once(path)
    return Found(
        name=name,
        recipe=published_recipe(converted.recipe, converted.overrides, overrides),
        weights=converted.weights,
        source_sha256=converted.source_sha256,
        tokenizer=None,
        note=None if "ema" in converted.sets else note,
    )


def published_recipe(name: str, own: Sequence[str], overrides: Sequence[str]) -> Recipe:
    """The shipped recipe under a file's `own` settings and the user's; without guidance, its authors' for that, too."""
    shipped = shipped_recipe(name)
    recipe = read_recipe(shipped, [*own, *overrides])
    if recipe.sample.cfg > 1:
        return recipe
    return read_recipe(shipped, [*own, *UNGUIDED.get(name, ()), *overrides])  # what the user says goes first
