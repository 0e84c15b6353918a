"""Which points to measure: step counts of every system, crossed with what is swept.

No torch. A step count that a model cannot take is refused when it was asked for, and left out with a line when it comes
from the default.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import getitem

from pydantic import ValidationError

from marcli.errors import UsageError
from marcli.recipe.approximate import PRESETS, Approximate, single_switches
from marcli.recipe.complaints import explain
from marcli.recipe.model import CausalBackbone, DiTBackbone
from marcli.recipe.sample import Sample
from marcli.recipe.schema import OF_DIFFUSION, Recipe, acts
from marcli.recipe.yaml_text import parse_scalar

AR_STEPS = (8, 16, 32, 64, 128)  # figure 6
DIT_STEPS = (50, 75, 150, 250)
SWITCHES = tuple(f"approximate.{name}" for name in Approximate.model_fields if name != "preset")
SWEEPABLE = ("cfg", "cfg_schedule", "temperature", "kv_cache", *OF_DIFFUSION, *SWITCHES)

Value = float | int | bool | str | None
Sweep = Mapping[str, Sequence[Value]]


@dataclass(frozen=True)
class Variant:
    """A system's recipe with the sampling settings of one point."""

    recipe: Recipe
    swept: tuple[tuple[str, Value], ...]
    is_default: bool


def parse_counts(text: str, option: str) -> tuple[int, ...]:
    """Read `8,16,32`; raises UsageError."""
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = (0,)
    if min(counts) < 1:
        raise UsageError(
            f"{option} {text!r} is not a list of step counts: write whole numbers from 1, as {option} 8,16"
        )
    return tuple(sorted(set(counts)))


def parse_sweeps(texts: Sequence[str]) -> dict[str, tuple[Value, ...]]:
    """Read `temperature=0.9,0.95` and the like; raises UsageError."""
    sweep: dict[str, tuple[Value, ...]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        key = key.removeprefix("sample.")
        if not equals or not values:
            raise UsageError(f"--sweep {text!r} has no values: write key=value,value as in temperature=0.9,0.95,1.0")
        if key not in SWEEPABLE:
            hint = "use --steps" if key == "steps" else f"choose from {', '.join(SWEEPABLE)}"
            raise UsageError(f"--sweep cannot vary {key!r}: {hint}")
        if key in sweep:
            raise UsageError(f"--sweep {key} is given twice: write all its values in one, as {key}=value,value")
        sweep[key] = tuple(parse_scalar(value.strip()) for value in values.split(","))
    return sweep


def vary(recipe: Recipe, **sample: Value) -> Recipe:
    """The recipe with other keys of its `sample` section, checked as a recipe is; raises UsageError."""
    tree = recipe.model_dump(mode="json")
    for key, value in sample.items():
        section, _, name = f"sample.{key}".rpartition(".")
        reduce(getitem, section.split("."), tree)[name] = value
    try:
        return Recipe.model_validate_json(json.dumps(tree))
    except ValidationError as invalid:
        raise UsageError(f"{recipe.name}: {explain(Recipe, invalid)}") from None


def default_ar_steps(recipe: Recipe) -> tuple[tuple[int, ...], str | None]:
    """The paper's step counts that fit, and a line on what was left out.

    Where fewer than five fit, the number of tokens is halved until five do.
    """
    tokens = recipe.num_tokens
    fitting = [steps for steps in AR_STEPS if steps <= tokens]
    left_out = [steps for steps in AR_STEPS if steps > tokens]
    if not left_out:
        return AR_STEPS, None
    steps, candidate = {tokens, *fitting}, tokens
    fewest = 2 if recipe.sample.approximate.order else 1  # each colour of a checkerboard needs its own
    while len(steps) < len(AR_STEPS) and candidate >= 2 * fewest:
        candidate //= 2
        steps.add(candidate)
    words = ", ".join(map(str, left_out))
    return tuple(sorted(steps)), f"{recipe.name}: {words} AR steps left out, an image has {tokens} tokens"


def step_settings(
    recipe: Recipe, steps: Sequence[int] | None, dit_steps: Sequence[int] | None, sweep: Sweep, *, own: bool
) -> tuple[list[dict[str, int]], str | None]:
    """The step counts of one system as sampling settings: those asked for, else the recipe's `own` or the paper's."""
    match recipe.model.backbone:
        case DiTBackbone():
            if "diffusion_steps" in sweep:
                return [{}], None
            counts = dit_steps or ((recipe.sample.diffusion_steps,) if own else DIT_STEPS)
            return [{"diffusion_steps": count} for count in counts], None
        case CausalBackbone():
            return [{}], None
    if steps is None and not own:
        counts, note = default_ar_steps(recipe)
        return [{"steps": count} for count in counts], note
    counts = steps or (recipe.sampling_steps,)
    if max(counts) > recipe.num_tokens:
        raise UsageError(
            f"--steps {max(counts)} is more than the {recipe.num_tokens} tokens of an image of {recipe.name}: "
            f"ask for at most {recipe.num_tokens}"
        )
    return [{"steps": count} for count in counts], None


def plan(
    recipe: Recipe,
    *,
    steps: Sequence[int] | None,
    dit_steps: Sequence[int] | None,
    sweep: Sweep,
    presets: Sequence[str],
    each_switch: bool,
    batch_size: int,
) -> tuple[list[Variant], list[str]]:
    """All variants of one system, exact and under each preset, and lines on what was left out; raises UsageError.

    With `each_switch` every switch of the presets is also on alone. What means nothing to a system (a DiT has no KV
    cache) leaves that system at its recipe's value.
    """
    meaningful = {key: values for key, values in sweep.items() if acts(recipe, key)}
    fitting = [name for name in presets if all(acts(recipe, key) for key in PRESETS[name])]
    settings, note = step_settings(recipe, steps, dit_steps, sweep, own=bool(sweep) or each_switch)
    notes = [note] if note else []
    notes += [f"{recipe.name}: {key} does not apply to it and is not swept" for key in sweep if key not in meaningful]
    notes += [f"{recipe.name}: preset {name} does not apply to it" for name in presets if name not in fitting]
    own = vary(recipe, batch_size=batch_size)
    single = [alone for name in presets if each_switch for alone in single_switches(name)]
    ways = [{}, *(alone for alone in single if all(acts(recipe, key) for key in alone))]
    ways += [{**PRESETS[name], "approximate.preset": name} for name in fitting]
    variants = []
    for way, counts, values in itertools.product(ways, settings, itertools.product(*meaningful.values())):
        swept = tuple(zip(meaningful, values, strict=True))
        changes = way | {"batch_size": batch_size} | counts | dict(swept)
        varied = vary(recipe, **changes)
        if all(varied != each.recipe for each in variants):
            variants.append(Variant(varied, swept, is_default=same_settings(varied, own)))
    return variants, notes


def parse_presets(names: Sequence[str]) -> tuple[str, ...]:
    """Check names of presets; raises UsageError."""
    unknown = [name for name in names if name not in PRESETS]
    if unknown:
        raise UsageError(f"--fast-preset {unknown[0]!r} does not exist: choose {', '.join(PRESETS)}")
    return tuple(dict.fromkeys(names))


def same_settings(first: Recipe, second: Recipe) -> bool:
    """Whether both sample alike, defaults filled in."""

    def settled(recipe: Recipe) -> Sample:
        return recipe.sample.model_copy(update={"steps": recipe.sampling_steps, "kv_cache": recipe.uses_kv_cache})

    return settled(first) == settled(second)
