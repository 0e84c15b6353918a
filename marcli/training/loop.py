"""The training loop: flat, from one batch to the next.

The host never waits for the device inside a step: losses are fetched once per log line, clipping and the guard against
losses that are not finite act on the device. On a CPU waiting is free, so there every step is looked at.
"""

import contextlib
import json

import torch
from torch import Tensor

from marcli.errors import MarcliError, StoppedError
from marcli.runtime.progress import Progress
from marcli.runtime.seeding import item_seed
from marcli.runtime.stop import StopRequest
from marcli.training.checkpoint import save_checkpoint
from marcli.training.feed import Batch
from marcli.training.metrics_log import MetricsLog, StepRecord, Window
from marcli.training.nonfinite import NonFiniteGuard
from marcli.training.optim import apply_step, gradient_norm
from marcli.training.preview import write_previews
from marcli.training.schedule import learning_rate
from marcli.training.setup import Job


def run_training(job: Job) -> int:
    """Train from `job.first_step` to the end; returns the steps taken in all.

    Raises StoppedError after a signal (everything is saved), MarcliError when the loss is not finite and the policy
    says stop (the last checkpoint stays the newest).
    """
    train, processes, device = job.recipe.train, job.processes, job.processes.device
    parameters = [parameter for parameter in job.model.parameters() if parameter.requires_grad]
    guard = NonFiniteGuard(train.nan_policy, device, streak=job.open_streak)
    window = Window(job.open_window)
    log = MetricsLog(job.run.metrics_path, processes, after_step=job.first_step, images_per_step=train.batch_size)
    look_every = 1 if device.type == "cpu" else train.log_every
    progress = Progress(title="train", total=job.total, unit="steps", shown=processes.is_main, done=job.first_step)
    with progress, StopRequest() as stop:
        for batch in job.feed.batches(job.first_step, job.total):
            done = batch.step + 1
            torch.manual_seed(item_seed("dropout", train.seed, batch.step, processes.rank))
            loss = job.agreement.mean(forward_backward(job, batch))
            norm = gradient_norm(parameters)
            lr = learning_rate(train, batch.step, warmup=job.warmup, total=job.total)
            withheld = guard.withhold(loss, norm)
            apply_step(job.trained.optimizer, learning_rate=lr, norm=norm, largest_norm=train.grad_clip, skip=withheld)
            job.trained.ema.update()
            window.add(done, loss, norm, guard.streak)

            stopping = job.agreement.any(stop.requested)
            ending = stopping or done == job.total
            log_due = done % train.log_every == 0 or done == job.total
            sample_due = train.sample_every is not None and done % train.sample_every == 0 and done != job.total
            save_due = ending or done % train.checkpoint_every == 0
            facts = {}
            if done % look_every == 0 or log_due or sample_due or save_due:
                report_withheld(job, guard, window.fetch(), progress)
            if log_due:
                line = {"step": done, "epoch": done * train.batch_size / job.source.num_images, "lr": lr}
                line |= window.close()
                log.write(line)
                facts = {"loss": "-" if line["loss"] is None else f"{line['loss']:.4f}"}
            progress.advance(**facts)
            if sample_due and processes.is_main:
                write_previews(job, step=done)
            if save_due and processes.is_main:
                state = job.state(done, window, streak=int(guard.streak))
                save_checkpoint(job.run.checkpoints, job.trained, state, keep=train.keep_checkpoints)
            if stopping and done < job.total:
                raise StoppedError(
                    f"stopped by {stop.signal_name or 'a signal to another process'} after step {done} of "
                    f"{job.total}; everything is saved in {job.run.path}: the same command goes on from there"
                )
    return job.total


def forward_backward(job: Job, batch: Batch) -> Tensor:
    """Add the gradient of this process's mean loss; return that loss, detached."""
    share = len(batch.labels)
    parts = list(batch.split(job.recipe.train.micro_batch_size or share))
    total = torch.zeros((), device=job.processes.device)
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        with contextlib.nullcontext() if last else job.processes.accelerator.no_sync(job.forward):
            latents, labels, draws = job.to_device(part)
            settings = dict(num_known=part.num_known, share=len(part.labels) / share, first=i == 0)
            total += job.backward(latents, labels, draws, **settings)
    return total


def report_withheld(job: Job, guard: NonFiniteGuard, records: list[StepRecord], progress: Progress) -> None:
    """Name every withheld update and its images; raises MarcliError when the policy is exhausted."""
    for record in records:
        if record.streak == 0:
            continue
        path = job.run.path / "nonfinite.jsonl"
        progress.say(f"The loss of step {record.step} is {record.loss}: its update was withheld (images in {path}).")
        if job.processes.is_main:
            images = job.feed.indices(record.step - 1).tolist()
            with path.open("a") as file:
                file.write(json.dumps({"step": record.step, "loss": str(record.loss), "images": images}) + "\n")
        if guard.exhausted(record.streak):
            skips = job.recipe.train.nan_policy == "skip"
            skip = "" if skips else " set train.nan_policy=skip and run it again,"
            raise MarcliError(
                f"the loss of step {record.step} is {record.loss} (gradient norm {record.grad_norm}). "
                f"Training stopped; what is in {job.run.checkpoints} is from before it and the batch is in {path}. "
                f"Look at those images,{skip} or train with a lower train.lr in another folder (--out)"
            )
