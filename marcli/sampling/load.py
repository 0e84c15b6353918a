"""What the user names, as a system ready to sample: a run, a weights file, a published name, a shared run.

The recipe always comes with the weights (beside them, inside them, or known for a published file), so architecture is
never typed twice; only `sample.*` can be overridden.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from marcli.errors import MarcliError, UsageError
from marcli.model.build import build_model
from marcli.pretrained.converted import UNGUIDED, convert_once
from marcli.pretrained.hub import HUB_PREFIX, fetch_shared, find_model, must_be_downloaded
from marcli.pretrained.published import MODELS
from marcli.pretrained.safe import assign_strictly
from marcli.recipe.reader import read_recipe, recipe_from_text, shipped_recipe
from marcli.recipe.schema import Recipe, acts
from marcli.runtime.atomic import sha256_file
from marcli.runtime.home import at_home
from marcli.runtime.rundir import RunDir, newest_run
from marcli.runtime.seeding import item_seed
from marcli.runtime.skeleton import NothingDrawn, skeletons
from marcli.sampling.naming import FOREIGN, check_overrides, run_of_checkpoint, unknown
from marcli.sampling.system import Named, System
from marcli.tokenizer.base import Tokenizer
from marcli.tokenizer.build import build_tokenizer

log = logging.getLogger("marcli")

DEFAULT = "mar-l"
Weights = Literal["ema", "raw"]


@dataclass(frozen=True)
class Found:
    """Where the parts of a system lie; `source_sha256` is that of a file of others which became `weights`."""

    name: str
    recipe: Recipe
    weights: Path
    source_sha256: str | None
    tokenizer: Path | None
    note: str | None


def load_system(spec: str | None, *, weights: Weights, overrides: Sequence[str]) -> System:
    """Return the system that `spec` names, on the CPU in float32, in evaluation mode.

    Args:
        spec: a run's folder, a weights file (a run's `.safetensors`, or a published file), a published name,
            `hub:user/name[@revision]`, or None for the newest run under runs/, else mar-l
        weights: the averaged or the raw ones; a file that holds one set gives that one, and the note says so
        overrides: `sample.key=value`

    Raises:
        UsageError: `spec` names nothing, or an override is not of `sample`
        MarcliError: a part is missing, damaged, does not fit, or was made with another tokenizer
    """
    check_overrides(overrides)
    found = find(spec or default_spec(), overrides)
    say_idle(found.recipe, overrides)
    chosen, note = choose(weights, sets_of(found.weights), found)
    tokenizer = ready_tokenizer(found)
    model = filled_model(found.recipe, read_set(found.weights, chosen), source=str(found.weights))
    notes = [each for each in (note, found.note, tokenizer.weights_note) if each]
    return System(
        name=found.name,
        recipe=found.recipe,
        model=model,
        tokenizer=tokenizer,
        weights=chosen,
        weights_sha256=found.source_sha256 or sha256_file(found.weights),
        note="; ".join(notes) or None,
    )


def name_system(spec: str | None, *, weights: Weights, overrides: Sequence[str]) -> Named:
    """Return what `load_system` would load, without loading it; of what is not here only a recipe is downloaded.

    Raises as `load_system` does for what can be known beforehand.
    """
    check_overrides(overrides)
    spec = spec or default_spec()
    if spec in MODELS and must_be_downloaded(spec):
        model = MODELS[spec]
        log.warning("%s would be downloaded from %s.", model.file.name, model.file.repo)
        recipe = published_recipe(model.recipe, (), overrides)
        named = Named(spec, recipe, weights if weights in model.sets else model.sets[0])
    elif spec.startswith(HUB_PREFIX):
        folder = fetch_shared(spec.removeprefix(HUB_PREFIX), whole=False)
        named = Named(spec, read_recipe(folder / "recipe.yaml", overrides), weights)
    else:
        found = find(spec, overrides)
        named = Named(found.name, found.recipe, choose(weights, sets_of(found.weights), found)[0])
    say_idle(named.recipe, overrides)
    return named


def say_idle(recipe: Recipe, overrides: Sequence[str]) -> None:
    """Warn of settings that were asked for and that act on nothing in this model."""
    for override in overrides:
        if not acts(recipe, override.partition("=")[0].removeprefix("sample.")):
            log.warning("%s changes nothing: the model of %s has no part that it acts on.", override, recipe.name)


def random_system(recipe: Recipe, *, tokenizer: Tokenizer, seed: int) -> System:
    """Return a system with fresh model weights of `seed`, for measuring speed; its note says so."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(item_seed("random weights", seed))
        model = build_model(recipe).eval().requires_grad_(False)
    return System(
        name=recipe.name,
        recipe=recipe,
        model=model,
        tokenizer=tokenizer,
        weights="raw",
        weights_sha256=None,
        note="random weights",
    )


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


def check_manifest(folder: Path, name: str) -> None:
    """Raise MarcliError unless every file that loading reads has the sha256 that a shared run's manifest states."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except FileNotFoundError:
        raise MarcliError(f"{name} has no manifest.json to check its files by: share it again with marcli.") from None
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict):
        raise MarcliError(f"{name}: its manifest.json is not a mapping of files to sha256.")
    read = [folder / "recipe.yaml", folder / "weights.safetensors", *(folder / "tokenizer").rglob("*")]
    for path in read:
        entry = path.relative_to(folder).as_posix()
        if path.is_file() and entry not in manifest:
            raise MarcliError(f"{name}: its manifest.json does not name {entry}, so it is not what was shared.")
    for entry, sha256 in manifest.items():
        if Path(entry).is_absolute() or ".." in Path(entry).parts:
            raise MarcliError(f"{name}: its manifest.json names {entry}, outside of its folder.")
        path = folder / entry
        if not path.is_file():
            raise MarcliError(f"{name} lacks {entry}, which its manifest.json names.")
        if sha256_file(path) != sha256:
            raise MarcliError(f"{name}: {entry} is not the file that was shared (its sha256 differs). Fetch it again.")


def sets_of(path: Path) -> tuple[str, ...]:
    """Return which sets of weights a `.safetensors` file of ours holds, of 'ema' and 'raw'; none for others."""
    with opened(path) as file:
        prefixes = {name.partition(".")[0] for name in file.keys()}  # noqa: SIM118
    return tuple(each for each in ("ema", "raw") if each in prefixes) if prefixes <= {"ema", "raw"} else ()


def recipe_inside(path: Path) -> str | None:
    """Return the recipe that training wrote into a weights file, as YAML; None where there is none."""
    with opened(path) as file:
        written = (file.metadata() or {}).get("marcli", "{}")
    try:
        return json.loads(written).get("recipe_text")
    except (ValueError, AttributeError):
        return None


def read_set(path: Path, kind: str) -> dict[str, Tensor]:
    """Return one set of weights, without its prefix."""
    prefix = f"{kind}."
    with opened(path) as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


def opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise MarcliError(f"{path} is not a complete safetensors file ({error}): copy or fetch it again.") from None


def choose(wanted: Weights, held: tuple[str, ...], found: Found) -> tuple[str, str | None]:
    """Return the set of weights to use, and what to say when it is not the wanted one."""
    if not held:
        raise MarcliError(f"{found.weights} holds neither ema.* nor raw.* weights.")
    if wanted in held:
        return wanted, None
    note = f"{found.name} holds only its {held[0]} weights, so those are used"
    log.warning("%s.", note)
    return held[0], note


def filled_model(recipe: Recipe, tensors: dict[str, Tensor], *, source: str) -> nn.Module:
    """Return the recipe's model with these weights; parameters are never drawn at random first."""
    with skeletons():
        model = build_model(recipe)
    if len(list(model.buffers())) > len(set(model.state_dict()) - set(dict(model.named_parameters()))):
        with NothingDrawn():
            model = build_model(recipe)  # it computes buffers that no file holds
    assign_strictly(model, tensors, source=source)
    return model.eval().requires_grad_(False)


def ready_tokenizer(found: Found) -> Tokenizer:
    """Return the tokenizer the weights were trained over; a folder with another one is refused."""
    tokenizer = build_tokenizer(found.recipe, folder=found.tokenizer)
    if tokenizer.scale is None:
        raise MarcliError(
            f"{found.name} was trained over latents of a measured scale, which is not known here: put the run's "
            "tokenizer folder beside the weights."
        )
    return tokenizer
