"""Which points to measure: step counts of every system, crossed with what is swept.

Special: no torch. A step count that a model cannot take is refused when it was asked for, and left out with a line
when it comes from the default.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from marcli.errors import UsageError
from marcli.recipe.complaints import explain
from marcli.recipe.model import CausalBackbone, DiTBackbone
from marcli.recipe.sample import Sample
from marcli.recipe.schema import Recipe
from marcli.recipe.yaml_text import parse_scalar

AR_STEPS = (8, 16, 32, 64, 128)  # figure 6
DIT_STEPS = (50, 75, 150, 250)
SWEEPABLE = ("cfg", "cfg_schedule", "temperature", "diffusion_steps", "max_timestep", "clip_denoised", "kv_cache")

Value = float | int | bool | str
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
        sweep[key] = tuple(parse_scalar(value.strip()) for value in values.split(","))
    return sweep


def vary(recipe: Recipe, **sample: Value | None) -> Recipe:
    """The recipe with other sampling settings, checked as a recipe is; raises UsageError."""
    tree = recipe.model_dump(mode="json")
    tree["sample"] |= sample
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
    while len(steps) < len(AR_STEPS) and candidate > 1:
        candidate //= 2
        steps.add(candidate)
    words = ", ".join(map(str, left_out))
    return tuple(sorted(steps)), f"{recipe.name}: {words} AR steps left out, an image has {tokens} tokens"


def step_settings(
    recipe: Recipe, steps: Sequence[int] | None, dit_steps: Sequence[int] | None, sweep: Sweep
) -> tuple[list[dict[str, int]], str | None]:
    """The step counts of one system as sampling settings; with a sweep the recipe's own, unless asked for."""
    match recipe.model.backbone:
        case DiTBackbone():
            if "diffusion_steps" in sweep:
                return [{}], None
            counts = dit_steps or ((recipe.sample.diffusion_steps,) if sweep else DIT_STEPS)
            return [{"diffusion_steps": count} for count in counts], None
        case CausalBackbone():
            return [{}], None
    if steps is None and not sweep:
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
    recipe: Recipe, *, steps: Sequence[int] | None, dit_steps: Sequence[int] | None, sweep: Sweep, batch_size: int
) -> tuple[list[Variant], list[str]]:
    """All variants of one system, and lines on what was left out; raises UsageError.

    A swept key that means nothing to a system (a DiT has no KV cache) leaves that system at its recipe's value.
    """
    meaningful = {key: values for key, values in sweep.items() if applies(recipe, key)}
    settings, note = step_settings(recipe, steps, dit_steps, sweep)
    notes = [note] if note else []
    notes += [f"{recipe.name}: {key} does not apply to it and is not swept" for key in sweep if key not in meaningful]
    own = vary(recipe, batch_size=batch_size)
    variants = []
    for counts in settings:
        for values in itertools.product(*meaningful.values()):
            swept = tuple(zip(meaningful, values, strict=True))
            varied = vary(recipe, batch_size=batch_size, **counts, **dict(swept))
            variants.append(Variant(varied, swept, is_default=same_settings(varied, own)))
    return variants, notes


def applies(recipe: Recipe, key: str) -> bool:
    """Whether a sampling key changes anything for this system."""
    backbone, head = recipe.model.backbone, recipe.model.head
    if key == "kv_cache":
        return isinstance(backbone, CausalBackbone)
    if key in ("diffusion_steps", "max_timestep", "clip_denoised"):
        return isinstance(backbone, DiTBackbone) or head.kind == "diffusion"
    if key == "cfg_schedule":
        return not isinstance(backbone, DiTBackbone)
    return True


def same_settings(first: Recipe, second: Recipe) -> bool:
    """Whether both sample alike, defaults filled in."""

    def settled(recipe: Recipe) -> Sample:
        cached = isinstance(recipe.model.backbone, CausalBackbone) and recipe.sample.kv_cache is not False
        return recipe.sample.model_copy(update={"steps": recipe.sampling_steps, "kv_cache": cached})

    return settled(first) == settled(second)
