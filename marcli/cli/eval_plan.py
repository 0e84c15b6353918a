"""What `eval-fid --dry-run` prints: which pictures would be measured, against what, and where results go."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from marcli.cli.eval_inputs import check_reference
from marcli.cli.output import print_intent, print_plan

if TYPE_CHECKING:
    from marcli.metrics.pictures import PictureSource


def plan_pictures(
    source: "PictureSource",
    places: Mapping[str, Path],
    *,
    reference: str | None,
    features: str,
    num: int | None,
    as_json: bool,
) -> None:
    """Print what would be measured of pictures that exist; raises UsageError where there are too few."""
    from marcli.metrics.pictures import chosen_indices

    facts = {"images": len(chosen_indices(source, num)), "source": source.name, "image_size": source.image_size}
    facts |= {"features": features} | ({} if reference is None else {"reference": reference})
    print_intent(places, facts, {}, as_json=as_json)


def plan_system(
    spec: str | None,
    *,
    overrides: list[str],
    weights: Literal["ema", "raw"],
    reference: str | None,
    features: str,
    num: int | None,
    seeds: Sequence[int],
    classes: str,
    out: Path | None,
    as_json: bool,
) -> None:
    """Print the recipe of a run and what would be measured of pictures that it makes."""
    from marcli.metrics.evaluate import PAPER_NUM
    from marcli.sampling.evaluation import evaluation_folder
    from marcli.sampling.load import name_system
    from marcli.sampling.sample import chosen_classes

    system = name_system(spec, weights=weights, overrides=overrides)
    check_reference(system.name, reference)
    facts = {
        "images": num or PAPER_NUM,
        "seeds": list(seeds),
        "classes": len(chosen_classes(classes, system.recipe)),
        "features": features,
        "reference": reference or system.recipe.data.path,
    }
    print_plan(system.recipe, {"results": out or evaluation_folder(system)}, facts=facts, as_json=as_json)
