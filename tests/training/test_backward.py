"""Recorded training steps, with a stand-in for CUDA graphs, beside plain ones."""

import contextlib
import dataclasses
import logging

import pytest
import torch

from marcli.runtime.graphs import CudaGraphs
from marcli.training import backward
from marcli.training.backward import RecordedBackward, StepGraphs, check_room, recording_pays
from marcli.training.metrics_log import Window
from tests.training.test_step import take_step


class Later:
    """Captures a function without running it; a replay runs it."""

    def __init__(self):
        self.captured, self.replayed = 0, 0

    def __call__(self, function):
        self.captured += 1
        result = torch.zeros(())

        def replay():
            self.replayed += 1
            result.copy_(function())

        return replay, result


def recorded(job):
    parameters, capture = list(job.model.parameters()), Later()
    return dataclasses.replace(job, backward=RecordedBackward(job.forward, parameters, capture)), capture


def train(job, steps):
    losses = []
    for step in steps:
        torch.manual_seed(step)  # of dropout
        losses.append(take_step(job, job.feed.batch(step), Window([])).item())
    return losses


@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_recordings_train_as_autograd_does(recipe, start, micro_batch_size, tmp_path):
    made = recipe(micro_batch_size=micro_batch_size)
    plain = start(made, tmp_path / "plain")
    ours, capture = recorded(start(made, tmp_path / "recorded"))
    steps = [*range(12), *range(12)]
    known = [plain.feed.batch(step).num_known for step in range(12)]
    assert 1 < len(set(known)) < 12, "some lengths must come again and some be new"
    assert train(ours, steps) == train(plain, steps)
    for mine, theirs in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert capture.captured == len(set(known)) * (1 if micro_batch_size is None else 2)
    assert capture.replayed > capture.captured


def test_recordings_make_room_for_what_is_not_recorded(recipe, start, tmp_path, caplog):
    made = recipe()
    plain = start(made, tmp_path / "plain")
    ours, capture = recorded(start(made, tmp_path / "recorded"))
    batches = {plain.feed.batch(step).num_known: step for step in range(12)}
    first, second = list(batches.values())[:2]
    expected = train(plain, [first, first, second, second])
    losses, function = train(ours, [first, first]), ours.backward.recorded.function

    def too_large_beside_recordings(tensors, setting):
        if ours.backward.recorded.recordings:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return function(tensors, setting)

    ours.backward.recorded.function = too_large_beside_recordings
    assert capture.captured == 1
    with caplog.at_level(logging.WARNING, logger="marcli"):
        losses += train(ours, [second, second])
    assert losses == expected and capture.captured == 1
    assert len(caplog.records) == 1 and "too small for CUDA graphs" in caplog.text


def test_what_does_not_fit_alone_is_an_error(recipe, start, tmp_path, caplog):
    ours, _ = recorded(start(recipe(), tmp_path))

    def too_large(tensors, setting):
        raise torch.OutOfMemoryError("CUDA out of memory")

    ours.backward.recorded.function = too_large
    with pytest.raises(torch.OutOfMemoryError), caplog.at_level(logging.WARNING, logger="marcli"):
        train(ours, [0])
    assert not caplog.records and not ours.backward.recorded.gave_up


@pytest.mark.parametrize(("free", "enough"), [(59, False), (61, True)])
def test_recordings_need_the_memory_of_a_step_twice(monkeypatch, free, enough):
    """Of 100 bytes a step has taken 30 - 5, and a tenth is kept free."""
    for name, value in {"mem_get_info": (free, 100), "max_memory_reserved": 30, "memory_reserved": 5}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    with contextlib.nullcontext() if enough else pytest.raises(MemoryError, match="a step takes"):
        check_room()


def test_the_room_is_looked_at_until_the_first_recording(monkeypatch):
    seen = []
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(backward, "check_room", lambda: seen.append("room"))
    monkeypatch.setattr(CudaGraphs, "__call__", lambda self, function: seen.append("recording"))
    graphs = StepGraphs()
    for _ in range(2):
        graphs(None)
    assert seen == ["room", "recording", "recording"]


def test_long_runs_on_the_only_gpu_are_recorded(recipe, processes):
    gpu = dataclasses.replace(processes, device=torch.device("cuda"))
    assert recording_pays(recipe().train, gpu, 10_000)
    assert not recording_pays(recipe().train, gpu, 9_999)
    assert not recording_pays(recipe().train, processes, 10_000)
    assert not recording_pays(recipe().train, dataclasses.replace(gpu, world_size=2), 10_000)
    assert not recording_pays(recipe(activation_checkpointing=True).train, gpu, 10_000)
    assert not recording_pays(recipe(compile=False).train, gpu, 10_000)
