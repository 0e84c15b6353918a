"""Several processes over gloo do what one does: same samples, same loss, same decisions at the same step."""

import json
import multiprocessing
import os
import socket
import traceback

import pytest
import torch
from accelerate.state import AcceleratorState

from marcli.errors import MarcliError, StoppedError
from marcli.runtime.accelerator import start_processes
from marcli.runtime.rundir import RunDir
from marcli.training import loop
from marcli.training.loop import run_training
from marcli.training.setup import prepare


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def worker(rank, world_size, port, recipe, path, act, answers):
    """Train as rank `rank`; `act(job, rank)` may sabotage it. Answers how it ended."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="localhost",
        MASTER_PORT=str(port),
    )
    try:
        torch.set_num_threads(1)
        AcceleratorState._reset_state(reset_partial_state=True)
        job = prepare(recipe, RunDir(path), start_processes(precision="fp32", gpus="0"), lambda line: None)
        act(job, rank)
        try:
            answers.put((rank, "done", run_training(job)))
        except (MarcliError, StoppedError) as error:
            answers.put((rank, type(error).__name__, str(error)))
        job.processes.wait()
        if world_size > 1:
            torch.distributed.destroy_process_group()
    except BaseException:
        answers.put((rank, "crash", traceback.format_exc()))


def leave_alone(job, rank):
    """No sabotage."""


def train_in(world_size, recipe, path, act=leave_alone):
    """Start `world_size` processes; return how each ended, by rank.

    They are forked from a server that has done no more than import: autograd refuses to run in the child of a process
    in which it has run and has seen a GPU, be it a fake one.
    """
    context, port = multiprocessing.get_context("forkserver"), free_port()
    context.set_forkserver_preload([__name__, "sklearn.datasets", "torch._dynamo"])  # seconds each worker need not take
    answers = context.Queue()
    workers = [
        context.Process(target=worker, args=(rank, world_size, port, recipe, path, act, answers), daemon=True)
        for rank in range(world_size)
    ]
    for process in workers:
        process.start()
    ends = sorted(answers.get(timeout=120) for _ in workers)
    for process in workers:
        process.join(timeout=60)
    assert not [text for _, how, text in ends if how == "crash"], ends
    return [(how, text) for _, how, text in ends]


def losses(path):
    return [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def quiet(recipe):
    return recipe(model__backbone__dropout=0.0, log_every=1, steps=8, checkpoint_every=3)


@pytest.fixture(autouse=True)
def straight(train, quiet, tmp_path):
    """The same training in one process, this one."""
    train(quiet, tmp_path / "straight")
    return losses(tmp_path / "straight")


def look_at_the_wrapper(job, rank):
    assert job.forward.gradient_as_bucket_view and not job.forward.broadcast_buffers


def test_two_and_four_processes_train_as_one(quiet, straight, tmp_path):
    for world_size in (2, 4):
        ends = train_in(world_size, quiet, tmp_path / str(world_size), look_at_the_wrapper)
        assert ends == [("done", 8)] * world_size
        assert losses(tmp_path / str(world_size)) == pytest.approx(straight, abs=1e-5)
    assert len(straight) == 8 and len(set(straight)) == 8


def request_stop(job, rank):
    """Ask rank 1 alone to stop, after its fourth batch is made."""
    make = job.feed.batches

    def batches(first, last):
        for batch in make(first, last):
            if rank == 1 and batch.step == 3:
                os.kill(os.getpid(), 10)  # USR1
            yield batch

    job.feed.batches = batches


def test_a_stop_of_one_stops_all_and_another_number_of_processes_goes_on(quiet, straight, tmp_path):
    ends = train_in(2, quiet, tmp_path / "run", request_stop)
    assert [how for how, _ in ends] == ["StoppedError"] * 2
    assert "stopped by SIGUSR1 after step 4 of 8" in ends[1][1] and "after step 4 of 8" in ends[0][1]
    assert (tmp_path / "run" / "checkpoints" / "step-00000004").is_dir()
    assert train_in(1, quiet, tmp_path / "run") == [("done", 8)]
    assert losses(tmp_path / "run") == pytest.approx(straight, abs=1e-5)


def poison_rank_one(job, rank):
    make = job.feed.batch

    def batch(step):
        made = make(step)
        if rank == 1 and step == 4:
            made.draws["noise"].fill_(float("nan"))
        return made

    job.feed.batch = batch


def test_a_bad_loss_in_one_process_stops_all_at_the_same_step(quiet, tmp_path):
    ends = train_in(2, quiet, tmp_path / "run", poison_rank_one)
    assert all(how == "MarcliError" and "the loss of step 5 is nan" in text for how, text in ends)
    assert sorted(entry.name for entry in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-00000003"]
    assert json.loads((tmp_path / "run" / "nonfinite.jsonl").read_text())["step"] == 5


def note_previews(job, rank):
    loop.write_previews = lambda job, step: (job.run.path / f"previews-{step}-by-{rank}").touch()


def test_only_the_main_process_writes_previews(recipe, tmp_path):
    ends = train_in(2, recipe(sample_every=6), tmp_path, note_previews)
    assert ends == [("done", 12)] * 2
    assert [path.name for path in tmp_path.glob("previews-*")] == ["previews-6-by-0"]


def test_unequal_shares_are_refused(recipe, tmp_path):
    with pytest.raises(AssertionError, match="cannot be shared by 3 processes"):
        train_in(3, recipe(), tmp_path / "run")


def test_uneven_micro_batches_in_several_processes_change_nothing(quiet, straight, tmp_path):
    """Two processes with four images each, as three and one."""
    uneven = quiet.model_copy(update={"train": quiet.train.model_copy(update={"micro_batch_size": 3})})
    train_in(2, uneven, tmp_path / "uneven")
    assert losses(tmp_path / "uneven") == pytest.approx(straight, rel=1e-4)
