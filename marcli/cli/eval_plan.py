"""What `eval-fid --dry-run` prints: which pictures would be measured, against what, and where results go."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from marcli.cli.output import print_intent, print_plan
from marcli.errors import UsageError

if TYPE_CHECKING:
    from marcli.metrics.pictures import PictureSource


def plan_statistics(source: "PictureSource", path: Path, *, features: str, num: int | None, as_json: bool) -> None:
    """Print what `--make-stats` would measure."""
    facts = {"pictures": chosen(source, num), "features": known(features)}
    print_intent(facts, {"statistics": path}, record={}, as_json=as_json)


def plan_pictures(
    images: str,
    folder: Path,
    *,
    image_size: int | None,
    num: int | None,
    reference: str | None,
    features: str,
    as_json: bool,
) -> None:
    """Print what would be measured of pictures that exist."""
    from marcli.metrics.pictures import open_pictures

    pictures = chosen(open_pictures(images, image_size=image_size), num)
    facts = {"pictures": pictures, "reference": reference, "features": known(features)}
    print_intent(facts, {"results": folder}, record={}, as_json=as_json)


def chosen(source: "PictureSource", num: int | None) -> str:
    """Say how many pictures of a source would be measured; raises UsageError when there are fewer."""
    from marcli.metrics.pictures import chosen_indices

    return f"{len(chosen_indices(source, num)):,} of {source.name}, {source.image_size} pixels a side"


def known(features: str) -> str:
    """Return `features`; raises UsageError for a name that no extractor has."""
    from marcli.metrics.features import check_features

    check_features(features)
    return features


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
    wanted = chosen_classes(classes, system.recipe)
    each = "" if len(seeds) == 1 else f" of each of {len(seeds)} seeds"
    facts = {
        "pictures": f"{num or PAPER_NUM:,}{each}, {len(wanted)} classes in turn",
        "reference": reference or system.recipe.data.path,
        "features": known(features),
    }
    print_plan(system.recipe, {"results": out or evaluation_folder(system)}, facts=facts, as_json=as_json)


def check_reference(system: str, reference: str | None) -> None:
    """Raise UsageError where nothing says what the pictures of a system are to be compared with."""
    if reference is None and not Path(system).is_dir():
        raise UsageError(
            f"{system} does not come with the pictures it was trained on: give --reference, for ImageNet ADM's "
            "VIRTUAL_imagenet256_labeled.npz."
        )
