"""`marcli sample`."""

from pathlib import Path
from typing import Annotated

import typer

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
    Seed,
    Steps,
    Temperature,
    Weights,
    preset_overrides,
    sampling_overrides,
    split_overrides,
)
from marcli.cli.output import print_plan, print_result
from marcli.errors import UsageError
from marcli.runtime.writable import check_place


def sample(
    arguments: RunAndOverrides = None,
    num: Annotated[int | None, typer.Option(min=1, help="Pictures; default: the recipe's sample.num.")] = None,
    classes: Classes = "all",
    seed: Seed = 0,
    steps: Steps = None,
    cfg: Cfg = None,
    cfg_schedule: CfgSchedule = None,
    temperature: Temperature = None,
    diffusion_steps: DiffusionSteps = None,
    batch_size: BatchSize = None,
    weights: Weights = "ema",
    out: Annotated[Path | None, typer.Option(help="Folder; default: in the run, named by the settings.")] = None,
    npz: Annotated[bool, typer.Option("--npz", help="Write samples.npz for the ADM evaluation suite too.")] = False,
    animate: Annotated[bool, typer.Option("--animate", help="Write animation.gif, one frame per AR step.")] = False,
    engine: Engine = "auto",
    fast_preset: FastPreset = None,
    gpus: Gpus = "auto",
    processes: NumProcesses = 1,
    precision: Precision = "auto",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Make pictures and a grid with a trained run or published weights."""
    names, overrides = split_overrides(arguments)
    if len(names) > 1:
        raise UsageError(f"sample takes one run, not {len(names)}: {', '.join(names)}")
    overrides = preset_overrides(fast_preset) + overrides
    overrides += sampling_overrides(
        num=num,
        steps=steps,
        cfg=cfg,
        cfg_schedule=cfg_schedule,
        temperature=temperature,
        diffusion_steps=diffusion_steps,
        batch_size=batch_size,
    )
    if out is not None:
        check_place(out)
    if not dry_run:
        spread(gpus=gpus, processes=processes)

    from marcli.recipe.approximate import approximation_lines
    from marcli.sampling.load import load_system, name_system
    from marcli.sampling.sample import chosen_classes, default_folder
    from marcli.sampling.sample import sample as write_samples

    system = (name_system if dry_run else load_system)(
        names[0] if names else None, weights=weights, overrides=overrides
    )
    if animate and system.recipe.sampling_steps is None:
        raise UsageError("--animate shows AR steps, and model.backbone.kind 'dit' has none: leave it out")
    wanted = chosen_classes(classes, system.recipe)
    folder = out or default_folder(system, seed=seed, classes=wanted)
    if dry_run:
        print_plan(system.recipe, {"pictures": folder}, as_json=as_json)
        return

    from marcli.runtime.accelerator import start_processes
    from marcli.sampling.engine.build import build_engine
    from marcli.sampling.engine.compiled import compiling_pays

    here = start_processes(precision=precision, gpus=gpus)
    settings = system.recipe.sample
    long = compiling_pays(settings.num // (settings.batch_size * here.world_size))
    record = write_samples(
        system,
        build_engine(system, name=engine, device=here.device, precision=here.precision, compiled=long),
        here,
        out=folder,
        seed=seed,
        classes=wanted,
        npz=npz,
        animate=animate,
    )
    if here.is_main:
        lines = [f"{settings.num} pictures, grid.png and samples.json are in {folder}"]
        lines += [f"note: {system.note}"] if system.note else []
        lines += approximation_lines(settings.approximate)
        print_result(lines, {**record, "out": str(folder), "images": len(record["images"])}, as_json=as_json)
