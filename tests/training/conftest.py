"""A run so small that a step takes milliseconds: digits, 16 tokens, one block each side."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from marcli.recipe.schema import Recipe
from marcli.runtime.accelerator import Processes, start_processes
from marcli.runtime.rundir import RunDir
from marcli.training.loop import run_training
from marcli.training.setup import Job, prepare

TINY = {
    "name": "tiny",
    "data": {"path": "digits", "image_size": 8, "channels": 1, "num_classes": 10, "horizontal_flip": True},
    "tokenizer": {"kind": "pixels", "scale": 1.25},
    "model": {
        "patch_size": 2,
        "backbone": {
            "kind": "masked",
            "width": 16,
            "encoder_depth": 1,
            "decoder_depth": 1,
            "heads": 2,
            "buffer_size": 2,
        },
        "head": {"kind": "diffusion", "width": 16, "depth": 1, "noise_draws": 2},
    },
    "train": {
        "steps": 12,
        "batch_size": 8,
        "lr": 1e-3,
        "warmup_steps": 4,
        "ema_decay": 0.9,
        "log_every": 4,
        "checkpoint_every": 5,
    },
    "sample": {"steps": 4, "diffusion_steps": 4, "num": 4},
}


def tiny_recipe(**train: object) -> Recipe:
    """The tiny recipe with other values in its `train` section, in any section as `section__key`, or a whole one."""
    tree = copy.deepcopy(TINY)
    for key, value in train.items():
        *sections, name = key.split("__") if "__" in key or key in tree else ["train", key]
        place = tree
        for section in sections:
            place = place[section]
        place[name] = value
    return Recipe.model_validate_json(json.dumps(tree))


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    return tiny_recipe


@pytest.fixture
def processes() -> Processes:
    torch.set_num_threads(1)
    return start_processes(precision="fp32", gpus="0")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def start(processes: Processes, said: list[str]) -> Callable[..., Job]:
    """Return a function that prepares a job in a folder."""
    return lambda recipe, path: prepare(recipe, RunDir(path), processes, said.append)


class Killed(BaseException):
    """Stands for a kill: nothing may catch it and save."""


@pytest.fixture
def train(start: Callable[..., Job]) -> Callable[..., Job]:
    """Return a function that trains, or dies without a word before step `die_at`."""

    def run(recipe: Recipe, path: Path, *, die_at: int | None = None) -> Job:
        job = start(recipe, path)
        make = job.feed.batch

        def batch(step: int) -> object:
            if step == die_at:
                raise Killed
            return make(step)

        job.feed.batch = batch
        try:
            run_training(job)
        except Killed:
            assert die_at is not None
        return job

    return run
