"""One training run from lock to weights; the Python side of `marcli train`."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from marcli.errors import StoppedError, UsageError
from marcli.recipe.schema import Recipe
from marcli.runtime.accelerator import Processes
from marcli.runtime.rundir import RunDir
from marcli.training.export import export_weights, exported_step
from marcli.training.loop import run_training
from marcli.training.metrics_log import check_trackers, start_trackers
from marcli.training.preview import write_final_grids
from marcli.training.setup import Job, prepare

UNTRAINED_SHARE = 0.05


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: optimizer steps in all, of which `new_steps` were taken now."""

    steps: int
    new_steps: int


def train(recipe: Recipe, run: RunDir, processes: Processes, *, announce: Callable[[str], None]) -> TrainResult:
    """Train `recipe` in `run`, going on where an earlier call was stopped or killed; all processes call this.

    Afterwards the folder holds weights.safetensors, tokenizer/, recipe.yaml, metrics.jsonl, samples/ and checkpoints/.

    Raises:
        UsageError: the recipe does not fit the processes, or the run there was started with another recipe or data
        StoppedError: a signal asked to stop; everything is saved
        MarcliError: the folder is in use, the loss is not finite, the disk is full or every checkpoint is damaged
    """
    with run.lock() if processes.is_main else contextlib.nullcontext():
        already = run.read_status() if processes.is_main else None
        has_begun = already is None or already["state"] == "running"  # by a call that was killed, in the latter case
        is_new = not run.recipe_path.exists()
        try:
            check_trackers(recipe.train.trackers)
            job = prepare(recipe, run, processes, announce)
            if job.first_step == job.total and finished(run, already, job):
                announce(f"{run.path} is already trained to step {job.total}{how_to_go_on(recipe)}")
                return TrainResult(steps=job.total, new_steps=0)
            warn_of_slow_average(recipe.train.ema_decay, job.total, announce)
            has_begun = True
            if processes.is_main:
                run.write_status("running", step=job.first_step, steps=job.total)
            start_trackers(processes.accelerator, recipe.train.trackers, run.path / "trackers", run_name=recipe.name)
            run_training(job)
            finish(job)
        except BaseException as error:
            if processes.is_main and is_new and isinstance(error, UsageError):
                run.discard()
            elif processes.is_main and has_begun and run.path.is_dir():
                with contextlib.suppress(OSError):  # a full disk must not hide the error it caused
                    run.write_status("stopped" if isinstance(error, StoppedError) else "failed", message=str(error))
            raise
    return TrainResult(steps=job.total, new_steps=job.total - job.first_step)


def how_to_go_on(recipe: Recipe) -> str:
    """The end of the sentence about a finished run."""
    if recipe.train.lr_schedule == "constant":
        return f"; raise train.{'steps' if recipe.train.steps else 'epochs'} to go on."
    return ", and its learning rate has come to its end: train longer in another folder (--out)."


def warn_of_slow_average(decay: float, steps: int, announce: Callable[[str], None]) -> None:
    """Say so beforehand when the averaged weights will still hold a good part of the untrained ones."""
    share = decay**steps
    if share > UNTRAINED_SHARE:
        or_less = f", or set train.ema_decay to {1 - 10 / steps:.4g} or less" if steps > 10 else ""
        announce(
            f"After {steps} steps with train.ema_decay {decay} the averaged weights still hold {share:.0%} of the "
            f"untrained ones: sample with --weights raw{or_less}."
        )


def finished(run: RunDir, status: dict | None, job: Job) -> bool:
    """Return, in all processes alike, whether everything of the run is already written, and still there."""
    return job.processes.on_main(
        lambda: status is not None and status["state"] == "done" and exported_step(run.weights_path) == job.total
    )


def finish(job: Job) -> None:
    """Write what a run leaves behind: weights, then grids of samples from both of them."""
    if job.processes.is_main:
        export_weights(job.run.weights_path, job.trained, job.recipe, step=job.total)
        write_final_grids(job)
        job.run.write_status("done", step=job.total, steps=job.total)
    job.processes.wait()
    job.processes.accelerator.end_training()
