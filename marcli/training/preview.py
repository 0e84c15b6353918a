"""Grids of samples while training: the same seeds every time, from the raw and from the averaged weights."""

from pathlib import Path

import torch

from marcli.sampling.album import write_grid
from marcli.sampling.engine.build import build_engine
from marcli.sampling.generate import generate, micro_batches
from marcli.sampling.load import filled_model
from marcli.sampling.naming import Weights
from marcli.sampling.system import System
from marcli.training.setup import Job

SEED = 0
COLUMNS = 10


def write_previews(job: Job, *, step: int) -> None:
    """Write samples/step-XXXXXXXX-raw.png and -ema.png; nothing of the training changes.

    For the main process alone: nothing here waits for the others.
    """
    write_pictures(job, "raw", job.run.samples / f"step-{step:08d}-raw.png")
    write_pictures(job, "ema", job.run.samples / f"step-{step:08d}-ema.png")


def write_final_grids(job: Job) -> None:
    """Write samples/grid.png from the averaged weights and samples/grid-raw.png from the raw ones.

    For the main process alone, as `write_previews`.
    """
    write_pictures(job, "ema", job.run.samples / "grid.png")
    write_pictures(job, "raw", job.run.samples / "grid-raw.png")


def write_pictures(job: Job, weights: Weights, path: Path) -> None:
    """Sample the recipe's `sample.num` pictures, one class after the other, and write them as one grid."""
    sample = job.recipe.sample
    engine = build_engine(
        current_system(job, weights), name="auto", device=job.processes.device, precision=job.processes.precision
    )
    batches = micro_batches(sample.num, sample.batch_size)
    classes = range(job.recipe.data.num_classes)
    pictures = generate(engine, job.tokenizer, classes=classes, seed=SEED, batches=batches)
    images = torch.cat([part.images for part in pictures])
    write_grid(images, path, columns=min(COLUMNS, sample.num))


def current_system(job: Job, weights: Weights) -> System:
    """Return the run as it stands; its model shares the storage of the weights and is a module of its own."""
    state = job.model.state_dict()
    if weights == "ema":
        state |= job.trained.ema.state()
    return System(
        name=job.recipe.name,
        recipe=job.recipe,
        model=filled_model(job.recipe, state, source=str(job.run.path)),
        tokenizer=job.tokenizer,
        weights=weights,
        weights_sha256=None,
        note=None,
    )
