"""The three things that `eval-fid` does: make statistics, measure pictures, measure a run; and what each would do.

All processes carry it out together; the main one gets the lines and the record to end with, the others none.
"""

from pathlib import Path

import numpy as np

from marcli.cli.eval_report import write_report
from marcli.cli.eval_request import EvalRequest, check_reference, results_folder
from marcli.cli.output import print_intent, print_plan
from marcli.errors import UsageError
from marcli.metrics.collect import collect_pictures
from marcli.metrics.evaluate import PAPER_NUM, score_features
from marcli.metrics.features import Extractor, build_extractor, check_features
from marcli.metrics.pictures import PictureSource, chosen_indices, open_pictures, training_pictures
from marcli.metrics.references import check_colour, measure, open_reference, write_statistics
from marcli.recipe.reader import read_recipe
from marcli.runtime.accelerator import Processes
from marcli.runtime.writable import check_place
from marcli.sampling.engine.build import build_engine
from marcli.sampling.engine.compiled import compiling_pays
from marcli.sampling.evaluation import collect_samples, colours_of, evaluation_folder, picture_settings
from marcli.sampling.load import load_system, name_system
from marcli.sampling.sample import chosen_classes

READERS = 2
LOOKED_AT = 16  # pictures of a set that say whether it is in colour

Ending = tuple[list[str], dict]


def plan(request: EvalRequest, *, as_json: bool) -> None:
    """Print what would be measured, against what, and where results go; raises UsageError for what cannot be."""
    check_features(request.features)
    if request.mode == "run":
        plan_run(request, as_json=as_json)
    else:
        plan_pictures(request, as_json=as_json)


def plan_pictures(request: EvalRequest, *, as_json: bool) -> None:
    """Print what would be measured of pictures that exist; raises UsageError where there are too few."""
    source = open_existing(request)
    facts = {
        "images": len(chosen_indices(source, request.num)),
        "source": source.name,
        "image_size": source.image_size,
        "features": request.features,
    }
    if request.mode == "statistics":
        places = {"statistics": request.make_stats}
    else:
        facts["reference"] = request.reference
        places = {"results": results_folder(request.images, request.out)}
    print_intent(places, facts, {}, as_json=as_json)


def plan_run(request: EvalRequest, *, as_json: bool) -> None:
    """Print the recipe of a run and what would be measured of pictures that it makes."""
    system = name_system(request.run, weights=request.weights, overrides=request.overrides)
    check_reference(system.name, request.reference)
    facts = {
        "images": request.num or PAPER_NUM,
        "seeds": list(request.seeds),
        "classes": len(chosen_classes(request.classes, system.recipe)),
        "features": request.features,
        "reference": request.reference or system.recipe.data.path,
    }
    places = {"results": request.out or evaluation_folder(system)}
    print_plan(system.recipe, places, facts=facts, as_json=as_json)


def carry_out(request: EvalRequest, team: Processes) -> Ending:
    """Do what was asked for."""
    if request.mode == "run":
        return measure_run(request, extractor_of(request, team), team)
    source = open_existing(request)
    indices = chosen_indices(source, request.num)  # what is wrong with them is said before a network is loaded
    extractor = extractor_of(request, team)
    if request.mode == "statistics":
        return make_statistics(source, request, extractor, team)
    return measure_pictures(source, indices, request, extractor, team)


def extractor_of(request: EvalRequest, team: Processes) -> Extractor:
    """Load the feature network."""
    with team.main_first():
        return build_extractor(
            request.features,
            protocol=request.protocol,
            inception=request.inception,
            inception_sha256=request.inception_sha256,
            feature_weights=request.feature_weights,
            device=team.device,
        )


def make_statistics(source: PictureSource, request: EvalRequest, extractor: Extractor, team: Processes) -> Ending:
    """Write the statistics of a folder, an npz, a data set, or the data of a recipe or run."""
    reference = measure(source, extractor, num=request.num, processes=team, workers=READERS)
    if reference is None:
        return [], {}
    path = request.make_stats
    beside = write_statistics(reference, path)
    count = reference.gaussian.count
    lines = [f"Statistics of {count:,} pictures from {source.name}: {path}, described in {beside}"]
    return lines, {"stats": path, "description": beside, **reference.record()}


def measure_pictures(
    source: PictureSource, indices: np.ndarray, request: EvalRequest, extractor: Extractor, team: Processes
) -> Ending:
    """Measure these of the pictures that exist."""
    size = source.image_size
    against = open_reference(request.reference, extractor, image_size=size, processes=team, workers=READERS)
    if against is not None and extractor.name == "pixels":
        check_colour(against, source.read(indices[:: -(-len(indices) // LOOKED_AT)].tolist()))
    folder = results_folder(request.images, request.out)
    collected = collect_pictures(source, indices, extractor, folder=folder, processes=team, workers=READERS)
    if collected is None or against is None:
        return [], {}
    result = score_features(
        collected.features,
        collected.blank,
        extractor,
        against,
        image_size=size,
        inception_splits=request.inception_splits,
        rounding="stored",
        source={"pictures": source.name, "fingerprint": source.fingerprint},
    )
    return write_report([result], folder)


def measure_run(request: EvalRequest, extractor: Extractor, team: Processes) -> Ending:
    """Measure pictures that a run, published weights or a shared run make on the fly, seed by seed."""
    with team.main_first():
        system = load_system(request.run, weights=request.weights, overrides=request.overrides)
    check_reference(system.name, request.reference)
    data, num = system.recipe.data, request.num or PAPER_NUM
    classes = chosen_classes(request.classes, system.recipe)
    folder = request.out or evaluation_folder(system)
    check_place(folder)
    reference = request.reference or data
    against = open_reference(reference, extractor, image_size=data.image_size, processes=team, workers=READERS)
    if against is not None and extractor.name == "pixels":
        check_colour(against, colours_of(system))
    long = compiling_pays(len(request.seeds) * num // (system.recipe.sample.batch_size * team.world_size))
    engine = build_engine(system, name=request.engine, device=team.device, precision=team.precision, compiled=long)
    results = []
    for seed in request.seeds:
        collected = collect_samples(
            system, engine, extractor, seed=seed, num=num, classes=classes, folder=folder, processes=team
        )
        if collected is None or against is None:
            continue
        made_by = picture_settings(system, engine, seed=seed, classes=classes, precision=team.precision)
        result = score_features(
            collected.features,
            collected.blank,
            extractor,
            against,
            image_size=data.image_size,
            inception_splits=request.inception_splits,
            rounding="generated",
            source={"name": system.name, **made_by},
        )
        results.append(result)
    return write_report(results, folder) if results else ([], {})


def open_existing(request: EvalRequest) -> PictureSource:
    """Open --images or, for statistics, the data of a recipe or a run; raises UsageError."""
    place = request.images if request.run is None else request.run
    inside = Path(place) / "recipe.yaml"
    recipe = inside if inside.is_file() else Path(place)
    if request.mode == "statistics" and recipe.suffix in (".yaml", ".yml"):
        if request.image_size is not None:
            raise UsageError(
                f"--image-size crops --images, and {place} is a recipe: give data.image_size={request.image_size}."
            )
        return training_pictures(read_recipe(recipe, request.overrides).data)
    if request.overrides:
        raise UsageError(f"{request.overrides[0]} changes a recipe, but {place} is none: --image-size crops pictures.")
    return open_pictures(place, image_size=request.image_size)
