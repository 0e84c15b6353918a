"""`marcli eval-fid`: its options, checked as one request before torch is imported, and one call."""

from pathlib import Path
from typing import Annotated

import typer

from marcli.cli.eval_request import (
    EvalRequest,
    InceptionSplits,
    Protocol,
    check_request,
    only_run,
    parse_count,
    parse_seeds,
)
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
    ] = EvalRequest.features,
    protocol: Annotated[
        Protocol,
        typer.Option(help="Resizing for Inception; legacy_tensorflow compares with ADM and the paper."),
    ] = EvalRequest.protocol,
    inception: Annotated[Path | None, typer.Option(help="Inception's weights; default: downloaded once.")] = None,
    inception_sha256: Annotated[str | None, typer.Option(help="Hash of weights other than the published ones.")] = None,
    feature_weights: Annotated[Path | None, typer.Option(help="Weights for dinov2 or timm:NAME, a local file.")] = None,
    inception_splits: Annotated[
        InceptionSplits, typer.Option(help="Order and splits of the Inception Score.")
    ] = EvalRequest.inception_splits,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Crop --images to this side, as training does; default: as they are.")
    ] = None,
    steps: Steps = None,
    cfg: Cfg = None,
    cfg_schedule: CfgSchedule = None,
    temperature: Temperature = None,
    diffusion_steps: DiffusionSteps = None,
    classes: Classes = EvalRequest.classes,
    batch_size: BatchSize = None,
    weights: Weights = EvalRequest.weights,
    out: Annotated[
        Path | None, typer.Option(help="Results and features; default: eval in the run, or IMAGES.eval beside them.")
    ] = None,
    engine: Engine = EvalRequest.engine,
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
    request = EvalRequest(
        run=only_run(names),
        overrides=tuple(overrides),
        images=images,
        reference=reference,
        make_stats=make_stats,
        num=parse_count(num),
        image_size=image_size,
        out=out,
        seeds=parse_seeds(seeds),
        classes=classes,
        weights=weights,
        engine=engine,
        features=features,
        protocol=protocol,
        inception=inception,
        inception_sha256=inception_sha256,
        inception_splits=inception_splits,
        feature_weights=feature_weights,
    )
    check_request(request)
    check_push(push_to)
    run = run_to_share(names, images=images, make_stats=make_stats) if push_to is not None else None
    if dry_run:
        from marcli.cli.eval_modes import plan

        plan(request, as_json=as_json)
        return
    spread(gpus=gpus, processes=processes)

    from marcli.cli.eval_modes import carry_out
    from marcli.runtime.accelerator import start_processes

    team = start_processes(precision=precision, gpus=gpus)
    lines, record = carry_out(request, team)
    if team.is_main:
        shared_lines, shared = share(run, push_to)
        print_result([*lines, *shared_lines], {**record, **shared}, as_json=as_json)
