"""What the bench was asked for, and everything about it that can be refused before torch is imported."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from marcli.bench.plan import Sweep, Variant, plan
from marcli.errors import UsageError
from marcli.pretrained.hub import HUB_PREFIX
from marcli.pretrained.published import MODELS
from marcli.recipe.reader import read_recipe, recipe_folder
from marcli.recipe.schema import Recipe
from marcli.runtime.home import at_home
from marcli.runtime.launch import check_alone
from marcli.sampling.naming import FOREIGN, EngineName, Weights, check_overrides, unknown

TIME_LIMIT = 240.0
ENGINES: tuple[EngineName, ...] = get_args(EngineName)


@dataclass(frozen=True)
class Request:
    """What the command line asked for; None leaves the choice to the bench.

    `gated` are the (system, AR steps, diffusion steps) of a baseline, which decide what is left out for time, and
    `gated_num` is the number of pictures of its distances, which compare with those of as many pictures only.
    """

    specs: tuple[str, ...]
    overrides: tuple[str, ...]
    steps: tuple[int, ...] | None
    dit_steps: tuple[int, ...] | None
    sweep: Sweep
    presets: tuple[str, ...]
    each_switch: bool
    engines: tuple[EngineName, ...]
    batch_size: int | None
    num: int | None
    minutes: float | None
    quality: bool | None
    reference: str | None
    features: str | None
    inception: Path | None
    weights: Weights
    seed: int
    gated: frozenset[tuple[str, int | None, int | None]]
    gated_num: int | None

    @property
    def seconds(self) -> float | None:
        """Time after which no further round starts; a number of pictures that was asked for is not cut short."""
        if self.minutes is not None:
            return 60 * self.minutes or None
        return TIME_LIMIT if self.num is None else None

    @property
    def seconds_of_rounds(self) -> float | None:
        """As `seconds`, but no limit of its own where a baseline's number of pictures has to be reached."""
        return None if self.minutes is None and self.gated_num is not None else self.seconds


@dataclass
class Planned:
    """One system by name: its recipe where that is known without loading anything, and its variants."""

    spec: str
    recipe: Recipe | None
    is_random: bool
    variants: list[Variant] = field(default_factory=list)


def parse_engines(text: str) -> tuple[EngineName, ...]:
    """Read `plain,fast`; raises UsageError."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = [name for name in names if name not in ENGINES]
    if unknown:
        raise UsageError(f"--engine {unknown[0]!r} is not an engine: choose from {', '.join(ENGINES)}")
    return names


def known_recipe(spec: str, overrides: Sequence[str]) -> tuple[Recipe | None, bool]:
    """Return the recipe of a run or a recipe file, and whether it stands for random weights.

    Weights that are fetched or read first have no recipe yet. Raises UsageError for what names nothing.
    """
    path = at_home(spec)
    if (path / "recipe.yaml").is_file():  # before recipes: a run may be called as one
        check_overrides(overrides)
        return read_recipe(path / "recipe.yaml", overrides), False
    if path.suffix in (".yaml", ".yml") or (recipe_folder() / f"{spec}.yaml").is_file():
        return read_recipe(spec, overrides), True
    if path.is_dir():
        raise UsageError(f"{spec} is not a run: it has no recipe.yaml.")
    is_weights = path.is_file() and path.suffix in (*FOREIGN, ".safetensors")
    if is_weights or spec in MODELS or spec.startswith(HUB_PREFIX):
        return None, False
    raise UsageError(unknown(spec, path))


def plan_known(request: Request) -> tuple[list[Planned], list[str]]:
    """Plan what is known without torch; raises UsageError."""
    check_alone("bench")
    for option in ("reference", "features", "inception"):
        if request.quality is False and getattr(request, option) is not None:
            raise UsageError(f"--{option} is for quality, and --no-quality asks for none: leave one of them out")
    if request.each_switch and not request.presets:
        raise UsageError("--each-switch takes presets apart, and none is named: add --fast-preset lazy, for one")
    planned, notes, seen = [], [], set()
    for spec in request.specs:
        recipe, is_random = known_recipe(spec, request.overrides)
        identity = recipe.name if is_random else str(at_home(spec).resolve())
        if (identity, is_random) in seen:
            raise UsageError(f"{spec} is named twice: give every run once")
        seen.add((identity, is_random))
        entry = Planned(spec, recipe, is_random)
        if recipe is not None:
            entry.variants, lines = variants_of(recipe, request)
            notes += lines
        planned.append(entry)
    if request.quality and all(each.is_random for each in planned):
        raise UsageError(
            f"--quality needs trained weights, and those of a recipe such as {planned[0].spec} are random: name a run, "
            "or ask for --no-quality"
        )
    return planned, [*notes, *idle_options(planned, request)]


def idle_options(planned: Sequence[Planned], request: Request) -> list[str]:
    """Lines on step counts that were asked for and that no system here takes."""
    kinds = [None if each.recipe is None else each.recipe.model.backbone.kind for each in planned]
    return [
        f"{option} counts {what}, and no system here is one: it changes nothing"
        for option, counts, what, kind in (
            ("--steps", request.steps, "AR steps of masked models", "masked"),
            ("--dit-steps", request.dit_steps, "diffusion steps of a DiT", "dit"),
        )
        if counts is not None and not {None, kind}.intersection(kinds)
    ]


def variants_of(recipe: Recipe, request: Request) -> tuple[list[Variant], list[str]]:
    """All points of one system."""
    return plan(
        recipe,
        steps=request.steps,
        dit_steps=request.dit_steps,
        sweep=request.sweep,
        presets=request.presets,
        each_switch=request.each_switch,
        batch_size=request.batch_size or recipe.sample.batch_size,
    )
