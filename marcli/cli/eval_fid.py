"""`marcli eval-fid`: which pictures, which reference, one call, and what came out."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from marcli.cli.eval_inputs import (
    check_inputs,
    check_networks_options,
    check_reference,
    check_unused,
    parse_count,
    parse_seeds,
)
from marcli.cli.eval_plan import plan_pictures, plan_system
from marcli.cli.launching import spread
from marcli.cli.options import (
    AsJson,
    BatchSize,
    Cfg,
    CfgSchedule,
    Classes,
    DiffusionSteps,
    DryRun,
    Engine,
    FastPreset,
    Gpus,
    NumProcesses,
    Precision,
    RunAndOverrides,
    Steps,
    Temperature,
    Weights,
    preset_overrides,
    sampling_overrides,
    split_overrides,
)
from marcli.cli.output import print_result
from marcli.cli.sharing import PushTo, check_push, run_to_share, share
from marcli.errors import UsageError
from marcli.runtime.home import at_home
from marcli.runtime.writable import check_place

if TYPE_CHECKING:
    from marcli.metrics.features import Extractor
    from marcli.metrics.pictures import PictureSource
    from marcli.runtime.accelerator import Processes
    from marcli.sampling.naming import EngineName

READERS = 2
LOOKED_AT = 16  # pictures of a set that say whether it is in colour


def eval_fid(
    arguments: RunAndOverrides = None,
    images: Annotated[
        str | None, typer.Option(metavar="DIR|NPZ", help="Measure these pictures (a data set, too) instead of a run's.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="An npz of mu/sigma or pictures (ADM's), a folder, a data set; default: the run's own data."),
    ] = None,
    make_stats: Annotated[
        Path | None, typer.Option(metavar="OUT.npz", help="Write reference statistics of --images, or a recipe's data.")
    ] = None,
    num: Annotated[
        str | None, typer.Option(help="Pictures, e.g. 5k for a quick look; default: 50k of a run, all of --images.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds such as 0,1,2: each is measured, then mean and spread.")] = "0",
    features: Annotated[
        str, typer.Option(help="inception, dinov2, pixels (tiny pictures), timm:NAME or a TorchScript file.")
    ] = "inception",
    protocol: Annotated[
        Literal["legacy_tensorflow", "clean", "legacy_pytorch"],
        typer.Option(help="Resizing for Inception; legacy_tensorflow compares with ADM and the paper."),
    ] = "legacy_tensorflow",
    inception: Annotated[Path | None, typer.Option(help="Inception's weights; default: downloaded once.")] = None,
    inception_sha256: Annotated[str | None, typer.Option(help="Hash of weights other than the published ones.")] = None,
    feature_weights: Annotated[Path | None, typer.Option(help="Weights for dinov2 or timm:NAME, a local file.")] = None,
    inception_splits: Annotated[
        Literal["torch-fidelity", "adm"], typer.Option(help="Order and splits of the Inception Score.")
    ] = "torch-fidelity",
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Crop --images to this side, as training does; default: as they are.")
    ] = None,
    steps: Steps = None,
    cfg: Cfg = None,
    cfg_schedule: CfgSchedule = None,
    temperature: Temperature = None,
    diffusion_steps: DiffusionSteps = None,
    classes: Classes = "all",
    batch_size: BatchSize = None,
    weights: Weights = "ema",
    out: Annotated[
        Path | None, typer.Option(help="Results and features; default: eval in the run, or IMAGES.eval beside them.")
    ] = None,
    engine: Engine = "auto",
    fast_preset: FastPreset = None,
    gpus: Gpus = "auto",
    processes: NumProcesses = 1,
    precision: Precision = "auto",
    push_to: PushTo = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Measure FID, Inception Score, precision, recall and KID of a run, a folder or an npz.

    An interrupted measurement continues with the same command and the same pictures.
    """
    names, overrides = split_overrides(arguments)
    overrides = preset_overrides(fast_preset) + overrides
    overrides += sampling_overrides(
        steps=steps,
        cfg=cfg,
        cfg_schedule=cfg_schedule,
        temperature=temperature,
        diffusion_steps=diffusion_steps,
        batch_size=batch_size,
    )
    check_inputs(
        names,
        overrides,
        images=images,
        reference=reference,
        make_stats=make_stats,
        image_size=image_size,
        out=out,
    )
    check_networks_options(
        features,
        of_inception={
            "--protocol": protocol != "legacy_tensorflow",
            "--inception": inception is not None,
            "--inception-sha256": inception_sha256 is not None,
            "--inception-splits": inception_splits != "torch-fidelity",
        },
        of_timm={"--feature-weights": feature_weights is not None},
    )
    if images is not None or make_stats is not None:
        made_with = {"--seeds": seeds != "0", "--classes": classes != "all", "--weights": weights != "ema"}
        check_unused(made_with | {"--engine": engine != "auto"}, images=images)
    if out is not None or (images is not None and make_stats is None):
        check_place(out or results_folder(str(images), None))
    count, seed_list = parse_count(num), parse_seeds(seeds)
    check_push(push_to)
    run = run_to_share(names, images=images, make_stats=make_stats) if push_to is not None else None
    if dry_run:
        from marcli.metrics.features import check_features
        from marcli.metrics.pictures import open_pictures

        check_features(features)
        what = dict(num=count, features=features, as_json=as_json)
        if make_stats is not None:
            source = statistics_source(names[0] if names else str(images), overrides, image_size=image_size)
            plan_pictures(source, {"statistics": make_stats}, reference=None, **what)
        elif images is not None:
            source = open_pictures(images, image_size=image_size)
            plan_pictures(source, {"results": results_folder(images, out)}, reference=reference, **what)
        else:
            plan_system(
                names[0] if names else None,
                overrides=overrides,
                weights=weights,
                reference=reference,
                seeds=seed_list,
                classes=classes,
                out=out,
                **what,
            )
        return
    spread(gpus=gpus, processes=processes)

    from marcli.metrics.evaluate import PAPER_NUM
    from marcli.metrics.features import build_extractor
    from marcli.runtime.accelerator import start_processes

    team = start_processes(precision=precision, gpus=gpus)
    with team.main_first():
        extractor = build_extractor(
            features,
            protocol=protocol,
            inception=inception,
            inception_sha256=inception_sha256,
            feature_weights=feature_weights,
            device=team.device,
        )
    if make_stats is not None:
        place = names[0] if names else str(images)
        lines, record = make_statistics(
            place, make_stats, extractor, team, overrides=overrides, num=count, image_size=image_size
        )
    elif images is not None:
        lines, record = measure_pictures(
            images,
            extractor,
            team,
            reference=str(reference),
            num=count,
            image_size=image_size,
            splits=inception_splits,
            out=out,
        )
    else:
        lines, record = measure_system(
            names[0] if names else None,
            extractor,
            team,
            overrides=overrides,
            weights=weights,
            reference=reference,
            num=count or PAPER_NUM,
            seeds=seed_list,
            classes=classes,
            splits=inception_splits,
            engine=engine,
            out=out,
        )
    if team.is_main:
        shared_lines, shared = share(run, push_to)
        print_result([*lines, *shared_lines], {**record, **shared}, as_json=as_json)


def make_statistics(
    place: str,
    path: Path,
    extractor: "Extractor",
    team: "Processes",
    *,
    overrides: list[str],
    num: int | None,
    image_size: int | None,
) -> tuple[list[str], dict]:
    """Write the statistics of a folder, an npz, a data set, or the data of a recipe or run."""
    from marcli.metrics.references import measure, write_statistics

    source = statistics_source(place, overrides, image_size=image_size)
    reference = measure(source, extractor, num=num, processes=team, workers=READERS)
    if reference is None:
        return [], {}
    beside = write_statistics(reference, path)
    count = reference.gaussian.count
    lines = [f"Statistics of {count:,} pictures from {source.name}: {path}, described in {beside}"]
    return lines, {"stats": path, "description": beside, **reference.record()}


def statistics_source(place: str, overrides: list[str], *, image_size: int | None) -> "PictureSource":
    """Open a folder, an npz or a data set, or the data of a recipe or run."""
    from marcli.metrics.pictures import open_pictures, training_pictures
    from marcli.recipe.reader import read_recipe

    recipe = Path(place) / "recipe.yaml" if (Path(place) / "recipe.yaml").is_file() else Path(place)
    if recipe.suffix in (".yaml", ".yml"):
        if image_size is not None:
            raise UsageError(
                f"--image-size crops --images, and {place} is a recipe: give data.image_size={image_size}."
            )
        return training_pictures(read_recipe(recipe, overrides).data)
    if overrides:
        raise UsageError(f"{overrides[0]} changes a recipe, but {place} is none: --image-size crops pictures.")
    return open_pictures(place, image_size=image_size)


def results_folder(images: str, out: Path | None) -> Path:
    """Where the results of existing pictures go: into a folder named after them, beside them, even for `.` and `..`."""
    from marcli.data.listing import RESULTS

    place = at_home(images)
    place = place if place.name not in ("", "..") else Path(os.path.abspath(place))
    return out or Path(f"{place}{RESULTS}")


def measure_pictures(
    place: str,
    extractor: "Extractor",
    team: "Processes",
    *,
    reference: str,
    num: int | None,
    image_size: int | None,
    splits: str,
    out: Path | None,
) -> tuple[list[str], dict]:
    """Measure pictures that exist."""
    from marcli.cli.eval_report import write_report
    from marcli.metrics.collect import collect_pictures
    from marcli.metrics.evaluate import score_features
    from marcli.metrics.pictures import chosen_indices, open_pictures
    from marcli.metrics.references import check_colour, open_reference

    source = open_pictures(place, image_size=image_size)
    indices = chosen_indices(source, num)
    against = open_reference(reference, extractor, image_size=source.image_size, processes=team, workers=READERS)
    if against is not None and extractor.name == "pixels":
        check_colour(against, source.read(indices[:: -(-len(indices) // LOOKED_AT)].tolist()))
    folder = results_folder(place, out)
    collected = collect_pictures(source, indices, extractor, folder=folder, processes=team, workers=READERS)
    if collected is None or against is None:
        return [], {}
    result = score_features(
        collected.features,
        collected.blank,
        extractor,
        against,
        image_size=source.image_size,
        inception_splits=splits,
        rounding="stored",
        source={"pictures": source.name, "fingerprint": source.fingerprint},
    )
    return write_report([result], folder)


def measure_system(
    spec: str | None,
    extractor: "Extractor",
    team: "Processes",
    *,
    overrides: list[str],
    weights: Literal["ema", "raw"],
    reference: str | None,
    num: int,
    seeds: list[int],
    classes: str,
    splits: str,
    engine: "EngineName",
    out: Path | None,
) -> tuple[list[str], dict]:
    """Measure pictures that a run, published weights or a shared run make on the fly."""
    from marcli.cli.eval_report import write_report
    from marcli.metrics.evaluate import score_features
    from marcli.metrics.references import check_colour, open_reference
    from marcli.sampling.engine.build import build_engine
    from marcli.sampling.engine.compiled import compiling_pays
    from marcli.sampling.evaluation import collect_samples, colours_of, evaluation_folder, picture_settings
    from marcli.sampling.load import load_system
    from marcli.sampling.sample import chosen_classes

    with team.main_first():
        system = load_system(spec, weights=weights, overrides=overrides)
    check_reference(system.name, reference)
    size = system.recipe.data.image_size
    wanted = chosen_classes(classes, system.recipe)
    folder = out or evaluation_folder(system)
    check_place(folder)
    against = open_reference(
        reference or system.recipe.data, extractor, image_size=size, processes=team, workers=READERS
    )
    if against is not None and extractor.name == "pixels":
        check_colour(against, colours_of(system))
    long = compiling_pays(len(seeds) * num // (system.recipe.sample.batch_size * team.world_size))
    maker = build_engine(system, name=engine, device=team.device, precision=team.precision, compiled=long)
    results = []
    for seed in seeds:
        collected = collect_samples(
            system, maker, extractor, seed=seed, num=num, classes=wanted, folder=folder, processes=team
        )
        if collected is None or against is None:
            continue
        made_by = picture_settings(system, maker, seed=seed, classes=wanted, precision=team.precision)
        result = score_features(
            collected.features,
            collected.blank,
            extractor,
            against,
            image_size=size,
            inception_splits=splits,
            rounding="generated",
            source={"name": system.name, **made_by},
        )
        results.append(result)
    return write_report(results, folder) if results else ([], {})
