"""`marcli train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marcli.cli.launching import count_processes, spread
from marcli.cli.options import AsJson, DryRun, Gpus, NumProcesses, Overrides, Precision, RecipeFile
from marcli.cli.output import print_plan, print_result
from marcli.cli.sharing import PushTo, check_push, share
from marcli.runtime.launch import is_worker
from marcli.runtime.rundir import RunDir

if TYPE_CHECKING:
    from marcli.recipe.schema import Recipe

Out = Annotated[Path | None, typer.Option(help="The run's folder; default: runs/<name of the recipe>.")]


def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    out: Out = None,
    gpus: Gpus = "auto",
    processes: NumProcesses = 1,
    precision: Precision = "auto",
    dry_run: DryRun = False,
    push_to: PushTo = None,
    as_json: AsJson = False,
) -> None:
    """Train a recipe; the same command resumes."""
    from marcli.data.listing import check_outside
    from marcli.recipe.reader import read_recipe

    resolved = read_recipe(recipe, overrides or [])
    run = RunDir(out or Path("runs") / resolved.name)
    check_outside(resolved.data.path, run.path, option="--out")
    if dry_run:
        from marcli.bench.training_cost import training_flops

        print_plan(resolved, places(run), flops_per_image=training_flops(resolved), as_json=as_json)
        return
    check_push(push_to)
    if not is_worker():
        from marcli.training.schedule import check_shares

        check_folder(resolved, run)
        check_shares(resolved.train, count_processes(gpus=gpus, processes=processes))
    spread(gpus=gpus, processes=processes)

    from marcli.runtime.accelerator import start_processes
    from marcli.training.train import train as train_recipe

    group = start_processes(precision=precision, gpus=gpus)
    result = train_recipe(resolved, run, group, announce=lambda line: say(line, shown=group.is_main))
    if group.is_main:
        record = {"steps": result.steps, "new_steps": result.new_steps, **places(run)}
        lines = [f"Trained {resolved.name} to step {result.steps} ({result.new_steps} of them now).", *written(run)]
        shared_lines, shared = share(run, push_to)
        print_result([*lines, *shared_lines], {**record, **shared}, as_json=as_json)


def check_folder(recipe: "Recipe", run: RunDir) -> None:
    """Fail before torch is imported when the folder is in use or holds a run of another recipe."""
    from marcli.training.resume import check_same_recipe

    if run.path.is_dir():
        with run.lock():
            check_same_recipe(recipe, run)


def places(run: RunDir) -> dict[str, Path]:
    """Return where a training writes."""
    return {
        "run": run.path,
        "weights": run.weights_path,
        "metrics": run.metrics_path,
        "checkpoints": run.checkpoints,
        "samples": run.samples / "grid.png",
    }


def written(run: RunDir) -> list[str]:
    """Return one line per result of a finished run."""
    width = max(len(name) for name in places(run))
    return [f"  {name:{width}}  {place}" for name, place in places(run).items() if place.exists()]


def say(line: str, *, shown: bool) -> None:
    """Print a line beside the results, on standard error."""
    if shown:
        typer.echo(line, err=True)
