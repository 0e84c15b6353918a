"""What commands print when they are done, and what `--dry-run` prints instead of doing it."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from marcli.recipe.schema import Recipe


def print_result(lines: Sequence[str], record: Mapping[str, Any], *, as_json: bool) -> None:
    """Print what was written where; with `--json` one JSON object comes last.

    Paths in `record` become text, and numbers that JSON has no word for (NaN, infinity) null.
    """
    for line in lines:
        typer.echo(line)
    if as_json:
        typer.echo(json.dumps(only_finite(record), default=str, allow_nan=False))


def only_finite(value: Any) -> Any:
    """Return the same value with None in place of every number that is not finite."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: only_finite(each) for key, each in value.items()}
        case list() | tuple():
            return [only_finite(each) for each in value]
    return value


def print_plan(
    recipe: "Recipe",
    places: Mapping[str, Path],
    *,
    flops_per_image: float | None = None,
    facts: Mapping[str, Any] | None = None,
    as_json: bool,
) -> None:
    """Print the resolved recipe, its parameter counts, its work, and what `print_intent` prints."""
    from marcli.recipe.reader import recipe_text

    parameters = count_parameters(recipe)
    typer.echo(recipe_text(recipe), nl=False)
    typer.echo(f"# tokens: {recipe.num_tokens} of {recipe.token_dim} channels")
    typer.echo("# parameters: " + ", ".join(f"{name} {count:,}" for name, count in parameters.items()))
    record = {"recipe": recipe.model_dump(mode="json"), "parameters": parameters}
    if flops_per_image is not None:
        typer.echo(f"# work: {flops_per_image / 1e12:.3g} TFLOP per image")
        record["flops_per_image"] = flops_per_image
    print_intent(places, facts or {}, record, as_json=as_json)


def print_intent(
    places: Mapping[str, Path], facts: Mapping[str, Any], record: Mapping[str, Any], *, as_json: bool
) -> None:
    """Print `facts` and the `places` a command would write to or read; as JSON they come behind `record`."""
    for name, fact in facts.items():
        typer.echo(f"# {name.replace('_', ' ')}: {f'{fact:,}' if isinstance(fact, int) else fact}")
    for name, place in places.items():
        typer.echo(f"# {name}: {place}{'' if place.exists() else ' (not there yet)'}")
    print_result([], {**record, **facts, "places": dict(places)}, as_json=as_json)


def count_parameters(recipe: "Recipe") -> dict[str, int]:
    """Return the model's parameters in all and of its head, without allocating any."""
    from marcli.model.build import build_model
    from marcli.runtime.skeleton import skeletons

    with skeletons():
        model = build_model(recipe)
    counts = {"total": sum(parameter.numel() for parameter in model.parameters())}
    if recipe.model.head is not None:
        counts["head"] = sum(parameter.numel() for parameter in model.head.parameters())
    return counts
