"""What `eval-fid --dry-run` prints: which pictures would be measured, against what, and where results go."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from marcli.cli.output import print_intent, print_plan
from marcli.errors import UsageError

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


def check_reference(system: str, reference: str | None) -> None:
    """Raise UsageError where nothing says what the pictures of a system are to be compared with."""
    if reference is None and not Path(system).is_dir():
        raise UsageError(
            f"{system} does not come with the pictures it was trained on: give --reference, for ImageNet ADM's "
            "VIRTUAL_imagenet256_labeled.npz."
        )
