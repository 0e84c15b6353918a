"""A whole run: what it leaves behind, and what the command does about signals and a second run."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from marcli.errors import MarcliError, UsageError
from marcli.recipe.reader import read_recipe, recipe_text, write_recipe
from marcli.runtime.rundir import RunDir
from marcli.training import train as module
from marcli.training.loop import run_training
from marcli.training.preview import current_system, write_previews
from marcli.training.train import how_to_go_on, train

ROOT = Path(__file__).parents[2]


def test_a_run_leaves_weights_tokenizer_recipe_metrics_and_grids(recipe, processes, said, tmp_path):
    run, made = RunDir(tmp_path / "run"), recipe(sample_every=6, trackers=["tensorboard"])
    result = train(made, run, processes, announce=said.append)
    assert (result.steps, result.new_steps) == (12, 12)
    assert read_recipe(run.recipe_path, []) == made
    assert run.read_status()["state"] == "done"
    grids = sorted(path.name for path in run.samples.iterdir())
    assert grids == ["grid-raw.png", "grid.png", "step-00000006-ema.png", "step-00000006-raw.png"]
    grid = np.asarray(Image.open(run.samples / "grid.png"))
    assert grid.dtype == np.uint8 and grid.std() > 0
    assert list((run.path / "trackers").rglob("events.out.tfevents.*"))
    with safe_open(run.weights_path, "pt") as weights:
        names = set(weights.keys())
        assert {name.partition(".")[0] for name in names} == {"raw", "ema"}
        key = "head.denoiser.token_embed.weight"
        assert not torch.equal(weights.get_tensor(f"raw.{key}"), weights.get_tensor(f"ema.{key}"))
        assert json.loads(weights.metadata()["marcli"]) == {"recipe_text": recipe_text(made), "step": 12}
    again = train(made, run, processes, announce=said.append)
    assert again.new_steps == 0 and said[-1].endswith("already trained to step 12; raise train.steps to go on.")


def test_the_status_says_that_a_run_is_running(recipe, processes, tmp_path, monkeypatch):
    run, seen = RunDir(tmp_path / "run"), []
    monkeypatch.setattr(module, "run_training", lambda job: seen.append(run.read_status()) or run_training(job))
    train(recipe(), run, processes, announce=lambda line: None)
    ((state, step, steps),) = [(each["state"], each["step"], each["steps"]) for each in seen]
    assert (state, step, steps) == ("running", 0, 12)


def test_a_refused_command_leaves_status_and_recipe_of_the_run(recipe, processes, said, tmp_path):
    run = RunDir(tmp_path / "run")
    train(recipe(steps=2, sample__num=1), run, processes, announce=said.append)
    before, inode = run.read_status(), run.recipe_path.stat().st_ino
    with pytest.raises(MarcliError, match=r"train\.lr was"):
        train(recipe(steps=2, sample__num=1, lr=0.5), run, processes, announce=said.append)
    assert run.read_status() == before
    with pytest.raises(UsageError, match=r"already taken 2 steps, more than the 1 asked for: ask for at least 2"):
        train(recipe(steps=1, sample__num=1), run, processes, announce=said.append)
    assert run.read_status() == before and read_recipe(run.recipe_path, []).train.steps == 2
    train(recipe(steps=2, sample__num=1), run, processes, announce=said.append)
    assert run.recipe_path.stat().st_ino == inode  # an unchanged recipe is not written again


@pytest.mark.parametrize("keep", [0, 1000])
def test_weights_that_were_cut_short_are_written_anew(recipe, processes, said, tmp_path, keep):
    run, made = RunDir(tmp_path / "run"), recipe(steps=2, sample__num=1)
    train(made, run, processes, announce=said.append)
    whole = run.weights_path.read_bytes()
    run.weights_path.write_bytes(whole[:keep])
    assert train(made, run, processes, announce=said.append).new_steps == 0
    assert run.weights_path.read_bytes() == whole


def test_a_finished_run_without_checkpoints_is_not_trained_again(recipe, processes, said, tmp_path):
    run, made = RunDir(tmp_path / "run"), recipe(steps=2, sample__num=1)
    train(made, run, processes, announce=said.append)
    whole, grid = run.weights_path.read_bytes(), (run.samples / "grid-raw.png").read_bytes()
    shutil.rmtree(run.checkpoints)
    assert train(made, run, processes, announce=said.append).new_steps == 0
    assert said[-1].endswith("already trained to step 2; raise train.steps to go on.")
    run.write_status("running")  # killed while it made its grids, as far as one can see
    (run.samples / "grid-raw.png").unlink()
    assert train(made, run, processes, announce=said.append).new_steps == 0
    assert run.weights_path.read_bytes() == whole and (run.samples / "grid-raw.png").read_bytes() == grid
    with pytest.raises(UsageError, match=r"has taken 2 steps and cannot go on to 3, for its checkpoints are gone"):
        train(recipe(steps=3, sample__num=1), run, processes, announce=said.append)
    assert run.weights_path.read_bytes() == whole


def test_previews_leave_training_alone_and_show_the_weights_asked_for(recipe, train, tmp_path):
    job = train(recipe(), tmp_path)
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    write_previews(job, step=3)
    assert job.model.training and all(p.requires_grad for p in job.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in job.model.state_dict().items())
    raw, ema = (current_system(job, weights).model.state_dict() for weights in ("raw", "ema"))
    assert all(torch.equal(raw[name], before[name]) for name in before)
    assert all(torch.equal(ema[name], value) for name, value in job.trained.ema.state().items())


@pytest.fixture
def command(recipe, tmp_path):
    """The command line of a run that would take hours."""
    file = tmp_path / "tiny.yaml"
    write_recipe(recipe(steps=10**7, checkpoint_every=10**7), file)
    return [sys.executable, "-m", "marcli", "train", str(file), "--out", str(tmp_path / "run"), "--gpus", "0"]


def wait_for_metrics(run, process):
    deadline = time.monotonic() + 120
    while not run.metrics_path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)


def test_a_second_run_is_refused_and_a_signal_saves_and_ends_with_75(command, tmp_path):
    run = RunDir(tmp_path / "run")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_for_metrics(run, first)
        with pytest.raises(MarcliError, match=f"in use by process {first.pid} on host"), run.lock():
            pass
        first.send_signal(signal.SIGTERM)
        assert first.wait(timeout=60) == 75
    finally:
        first.kill()
    status = json.loads(run.status_path.read_text())
    assert status["state"] == "stopped" and "the same command goes on from there" in status["message"]
    (checkpoint,) = run.checkpoints.iterdir()
    assert f"after step {int(checkpoint.name.removeprefix('step-'))} of" in first.stderr.read()


def test_a_finished_run_says_how_to_go_on(recipe):
    assert how_to_go_on(recipe(steps=None, epochs=2)) == "; raise train.epochs to go on."
    assert how_to_go_on(recipe(lr_schedule="cosine")).endswith("train longer in another folder (--out).")


def test_a_run_whose_recipe_is_gone_is_refused(recipe, processes, tmp_path):
    run = RunDir(tmp_path / "run")
    train(recipe(steps=2), run, processes, announce=print)
    run.recipe_path.unlink()
    with pytest.raises(UsageError, match=r"recipe\.yaml is gone"):
        train(recipe(steps=3), run, processes, announce=print)


def test_a_refused_start_leaves_nothing_behind(recipe, tmp_path, processes):
    run = RunDir(tmp_path / "run")
    with pytest.raises(UsageError, match="does not exist"):
        train(recipe(data__path="/no/such/folder"), run, processes, announce=print)
    assert not run.path.exists()


def test_a_refused_start_leaves_what_was_there(recipe, tmp_path, processes):
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    (run.path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError):
        train(recipe(data__path="/no/such/folder"), run, processes, announce=print)
    assert (run.path / "notes.txt").read_text() == "mine" and run.read_status() is None


def test_an_attempt_that_fails_early_leaves_its_word(recipe, tmp_path, processes):
    run, photos = RunDir(tmp_path / "run"), tmp_path / "photos"
    photos.mkdir()
    (photos / "broken.png").write_bytes(b"no picture")
    broken = {"data__path": str(photos), "data__num_classes": 1, "data__on_broken": "fail", "steps": 1}
    with pytest.raises(MarcliError, match=r"broken\.png cannot be read"):
        train(recipe(**broken), run, processes, announce=print)
    assert run.read_status()["state"] == "failed"


def test_a_missing_tracker_is_refused_before_anything_is_written(recipe, tmp_path, processes, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    run = RunDir(tmp_path / "run")
    with pytest.raises(UsageError, match="wandb, which is not installed"):
        train(recipe(trackers=["wandb"]), run, processes, announce=print)
    assert not run.path.exists()
