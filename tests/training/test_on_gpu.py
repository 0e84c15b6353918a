"""Training on a GPU: uv run pytest -n0 -m gpu"""

import dataclasses

import pytest
import torch

from marcli.runtime.accelerator import start_processes
from marcli.runtime.rundir import RunDir
from marcli.training.backward import PlainBackward, RecordedBackward, StepGraphs
from marcli.training.loop import forward_backward, run_training
from marcli.training.metrics_log import Window
from marcli.training.nonfinite import NonFiniteGuard
from marcli.training.setup import prepare
from tests.training.test_step import heard, take_step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")]


def job_on(gpus, made, path, precision="fp32"):
    return prepare(made, RunDir(path), start_processes(precision=precision, gpus=gpus), lambda line: None)


STEPS = [0, 1, 2, 0, 1, 2, 3, 0]  # the same numbers of known tokens again, which records them


@pytest.mark.parametrize("compiled", [False, True])
def test_the_losses_of_a_cpu(recipe, tmp_path, compiled):
    losses = {}
    for gpus in ("0", "1"):
        made = recipe(model__backbone__dropout=0.0, compile=compiled and gpus == "1")
        job, window = job_on(gpus, made, tmp_path / gpus), Window([])
        losses[gpus] = [take_step(job, job.feed.batch(step), window).item() for step in STEPS]
    assert losses["1"] == pytest.approx(losses["0"], rel=1e-4)
    assert isinstance(job.backward, RecordedBackward if compiled else PlainBackward)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_recordings_train_as_autograd_does_and_draw_new_dropout(recipe, tmp_path, micro_batch_size, compiled):
    losses = {}
    for recorded in (False, True):
        made = recipe(micro_batch_size=micro_batch_size, compile=compiled and recorded)
        job = job_on("1", made, tmp_path / str(recorded))
        heard(job.model)
        parameters = list(job.model.parameters())
        if recorded:
            job = dataclasses.replace(job, backward=RecordedBackward(job.forward, parameters, StepGraphs()))
        losses[recorded] = []
        for seed, step in enumerate([*STEPS, 0]):
            torch.manual_seed(seed)
            losses[recorded].append(take_step(job, job.feed.batch(step), Window([])).item())
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)
    assert job.backward.recorded.recordings and not job.backward.recorded.gave_up
    last = []
    for seed in (100, 101, 100):  # the weights stay
        torch.manual_seed(seed)
        last.append(forward_backward(job, job.feed.batch(0)).item())
    assert last[0] == last[2] != last[1]


def test_a_step_never_waits_for_the_gpu(recipe, tmp_path):
    job, window = job_on("1", recipe(), tmp_path, precision="bf16"), Window([])
    guard = NonFiniteGuard("stop", job.processes.device, streak=0)
    take_step(job, job.feed.batch(0), window, guard)
    batch = job.feed.batch(1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        take_step(job, batch, window, guard)
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
