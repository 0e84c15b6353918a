"""One training run from lock to weights; the Python side of `marcli train`."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from marcli.errors import StoppedError
from marcli.recipe.schema import Recipe
from marcli.runtime.accelerator import Processes
from marcli.runtime.rundir import RunDir
from marcli.training.export import export_weights
from marcli.training.loop import run_training
from marcli.training.metrics_log import start_trackers
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
        already, started = run.read_status() if processes.is_main else None, False
        try:
            job = prepare(recipe, run, processes, announce)
            if job.first_step == job.total and finished(run, already, job):
                announce(f"{run.path} is already trained to step {job.total}; raise train.steps to go on.")
                return TrainResult(steps=job.total, new_steps=0)
            warn_of_slow_average(recipe.train.ema_decay, job.total, announce)
            if processes.is_main:
                run.write_status("running", step=job.first_step, steps=job.total)
            started = True
            start_trackers(processes.accelerator, recipe.train.trackers, run.path / "trackers", run_name=recipe.name)
            run_training(job)
            finish(job)
        except BaseException as error:
            if processes.is_main and started:  # a call that was refused says nothing of the run that is there
                with contextlib.suppress(OSError):  # a full disk must not hide the error it caused
                    run.write_status("stopped" if isinstance(error, StoppedError) else "failed", message=str(error))
            raise
    return TrainResult(steps=job.total, new_steps=job.total - job.first_step)


def warn_of_slow_average(decay: float, steps: int, announce: Callable[[str], None]) -> None:
    """Say so beforehand when the averaged weights will still hold a good part of the untrained ones."""
    share = decay**steps
    if share > UNTRAINED_SHARE:
        enough = max(0.0, 1 - 10 / steps)
        announce(
            f"After {steps} steps with train.ema_decay {decay} the averaged weights still hold {share:.0%} of the "
            f"untrained ones: sample with --weights raw, or set train.ema_decay to {enough:.4g} or less."
        )


def finished(run: RunDir, status: dict | None, job: Job) -> bool:
    """Return, in all processes alike, whether everything of the run is already written."""
    done = status is not None and status["state"] == "done" and run.weights_path.exists()
    return job.agreement.share(done)


def finish(job: Job) -> None:
    """Write what a run leaves behind: weights, then grids of samples from both of them."""
    if job.processes.is_main:
        export_weights(job.run.weights_path, job.trained, job.recipe, step=job.total)
        write_final_grids(job)
        job.run.write_status("done", step=job.total, steps=job.total)
    job.processes.wait()
    job.processes.accelerator.end_training()
