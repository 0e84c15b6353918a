"""Training on a GPU: uv run pytest -n0 -m gpu"""

import pytest
import torch

from marcli.runtime.accelerator import start_processes
from marcli.runtime.rundir import RunDir
from marcli.training.loop import run_training
from marcli.training.metrics_log import Window
from marcli.training.setup import prepare
from tests.training.test_step import take_step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")]


def job_on(gpus, made, path, precision="fp32"):
    return prepare(made, RunDir(path), start_processes(precision=precision, gpus=gpus), lambda line: None)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_losses_of_a_cpu(recipe, tmp_path, compiled):
    losses = {}
    for gpus in ("0", "1"):
        made = recipe(model__backbone__dropout=0.0, compile=compiled and gpus == "1")
        job, window = job_on(gpus, made, tmp_path / gpus), Window([])
        losses[gpus] = [take_step(job, job.feed.batch(step), window).item() for step in range(4)]
    assert losses["1"] == pytest.approx(losses["0"], rel=1e-4)


def test_a_step_never_waits_for_the_gpu(recipe, tmp_path):
    job, window = job_on("1", recipe(), tmp_path, precision="bf16"), Window([])
    take_step(job, job.feed.batch(0), window)
    batch = job.feed.batch(1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        take_step(job, batch, window)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_resumed_run_ends_where_a_whole_one_does(recipe, tmp_path):
    whole = job_on("1", recipe(), tmp_path / "whole")
    run_training(whole)
    for steps in (7, 12):
        parts = job_on("1", recipe(steps=steps), tmp_path / "parts")
        run_training(parts)
    for ours, theirs in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
