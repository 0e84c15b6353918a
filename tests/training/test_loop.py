"""Resuming is exact, randomness belongs to the item, and a bad loss harms nothing."""

import json
import os
import signal

import pytest
import torch

from marcli.errors import MarcliError, StoppedError, UsageError
from marcli.training.checkpoint import checkpoint_steps
from marcli.training.metrics_log import TIMING_KEYS
from marcli.training.optim import decayed_names


def tensors(job):
    """Everything that training changes, by name."""
    found = {f"model {name}": value for name, value in job.model.state_dict().items()}
    found |= {f"ema {name}": value for name, value in job.trained.ema.state().items()}
    for name, parameter in job.model.named_parameters():
        found |= {f"optimizer {name} {slot}": v for slot, v in job.trained.optimizer.state[parameter].items()}
    return found


def lines(job):
    """metrics.jsonl without what depends on the clock."""
    rows = [json.loads(text) for text in job.run.metrics_path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMING_KEYS} for row in rows]


@pytest.mark.parametrize("die_at", [3, 6, 10])
def test_a_killed_run_resumes_to_the_same_bits(recipe, train, tmp_path, die_at):
    straight = train(recipe(), tmp_path / "straight")
    train(recipe(), tmp_path / "killed", die_at=die_at)
    resumed = train(recipe(), tmp_path / "killed")
    assert resumed.first_step == die_at // 5 * 5
    assert lines(resumed) == lines(straight)
    assert [row["step"] for row in lines(straight)] == [4, 8, 12]
    before, after = tensors(straight), tensors(resumed)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(name.startswith("optimizer") and name.endswith("exp_avg_sq") for name in before)


def test_training_learns_and_the_average_follows(recipe, train, tmp_path):
    job = train(recipe(steps=40, lr=5e-3, checkpoint_every=40), tmp_path)
    assert lines(job)[-1]["loss"] < 0.9 * lines(job)[0]["loss"]
    name = "head.denoiser.out.weight"
    raw, average = job.model.state_dict()[name], job.trained.ema.state()[name]
    assert average.abs().max() > 0 and not torch.equal(raw, average)


KMEANS = {"kind": "kmeans", "patch_size": 2, "codebook_size": 16}
CAUSAL = {"kind": "causal", "width": 16, "depth": 1, "heads": 2}
OTHERS = {
    "dit": {"model__backbone": {"kind": "dit", "width": 16, "depth": 1, "heads": 2}, "model__head": None},
    "causal codes": {
        "tokenizer": KMEANS,
        "model__patch_size": 1,
        "model__backbone": CAUSAL,
        "model__head": {"kind": "cross_entropy"},
    },
    "masked l2": {"model__head": {"kind": "l2"}},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_every_system_trains_and_resumes(recipe, train, tmp_path, kind):
    changes = OTHERS[kind] | {"steps": 8, "sample": {"diffusion_steps": 4, "num": 4}}
    straight = train(recipe(**changes), tmp_path / "straight")
    train(recipe(**changes), tmp_path / "killed", die_at=6)
    assert lines(train(recipe(**changes), tmp_path / "killed")) == lines(straight)


def test_micro_batches_and_activation_checkpointing_change_nothing(recipe, train, tmp_path):
    settings = dict(steps=4, model__backbone__dropout=0.0, checkpoint_every=4)
    plain = tensors(train(recipe(**settings), tmp_path / "plain"))
    other = recipe(**settings, micro_batch_size=3, activation_checkpointing=True)  # 3, 3 and 2
    for name, value in tensors(train(other, tmp_path / "other")).items():
        torch.testing.assert_close(value, plain[name], rtol=1e-4, atol=2e-6, msg=name)


def test_dropout_is_a_function_of_the_step(recipe, train, tmp_path):
    """Resuming with dropout 0.5 is only exact when its randomness does not depend on what ran before."""
    heavy = recipe(model__backbone__dropout=0.5)
    straight = train(heavy, tmp_path / "straight")
    train(heavy, tmp_path / "killed", die_at=7)
    torch.rand(100)
    assert lines(train(heavy, tmp_path / "killed")) == lines(straight)


def test_changed_recipe_is_refused_by_key_and_harmless_changes_are_not(recipe, train, tmp_path):
    train(recipe(), tmp_path, die_at=7)
    with pytest.raises(UsageError, match=r"train\.lr was 0\.001 and is now 0\.002"):
        train(recipe(lr=2e-3), tmp_path)
    with pytest.raises(UsageError, match=r"model\.head\.width was 16 and is now 32"):
        train(recipe(model__head__width=32), tmp_path)
    longer = train(recipe(steps=14, log_every=7, checkpoint_every=7, sample__cfg=2.0), tmp_path)
    assert (longer.first_step, longer.total) == (5, 14)
    with pytest.raises(UsageError, match=r"already taken 14 steps"):
        train(recipe(steps=13), tmp_path)


def test_cosine_runs_cannot_change_their_length(recipe, train, tmp_path):
    train(recipe(lr_schedule="cosine"), tmp_path, die_at=7)
    with pytest.raises(UsageError, match=r"train\.steps was 12 and is now 14"):
        train(recipe(lr_schedule="cosine", steps=14), tmp_path)


def poison(job, steps):
    """Make the latents of these steps not a number."""
    make = job.feed.batch

    def batch(step):
        made = make(step)
        if step in steps:
            made.draws["noise"].fill_(float("nan"))
        return made

    job.feed.batch = batch


def test_a_bad_loss_stops_the_run_and_keeps_the_last_checkpoint(recipe, start, tmp_path):
    from marcli.training.loop import run_training

    job = start(recipe(), tmp_path)
    poison(job, {7})
    advice = r"set train.nan_policy=skip and run it again, or train with a lower train.lr in another folder"
    with pytest.raises(MarcliError, match=rf"the loss of step 8 is nan.*Look at those images, {advice}"):
        run_training(job)
    assert [entry.name for entry in job.run.checkpoints.iterdir()] == ["step-00000005"]
    record = json.loads((tmp_path / "nonfinite.jsonl").read_text())
    assert record["step"] == 8 and record["images"] == job.feed.indices(7).tolist()
    assert all(torch.isfinite(value).all() for value in tensors(job).values())


def test_skipped_steps_leave_weights_and_optimizer_alone(recipe, start, tmp_path):
    from marcli.training.loop import run_training

    job = start(recipe(nan_policy="skip", steps=6, log_every=6), tmp_path)
    poison(job, {2, 3, 4})
    run_training(job)
    (line,) = lines(job)
    assert line["withheld"] == 3 and line["loss"] == pytest.approx(line["loss"])
    assert all(torch.isfinite(value).all() for value in tensors(job).values())
    name = next(iter(decayed_names(job.model)))
    assert job.trained.optimizer.state[job.model.get_parameter(name)]["step"] == 3
    assert len((tmp_path / "nonfinite.jsonl").read_text().splitlines()) == 3


def test_skipping_is_bounded(recipe, start, tmp_path):
    from marcli.training.loop import run_training

    job = start(recipe(nan_policy="skip", steps=30), tmp_path)
    poison(job, set(range(3, 30)))
    with pytest.raises(MarcliError, match=r"the loss of step 13 is nan.* at those images, or train with a lower"):
        run_training(job)


def test_steps_withheld_before_a_stop_count_after_it(recipe, start, tmp_path):
    from marcli.training.loop import run_training

    made = recipe(nan_policy="skip", steps=30)
    job = start(made, tmp_path)
    poison(job, set(range(3, 30)))
    with pytest.raises(MarcliError, match=r"the loss of step 13 is nan"):
        run_training(job)
    again = start(made, tmp_path)  # from step 10, the seventh in a row
    assert (again.first_step, again.open_streak) == (10, 7)
    poison(again, set(range(3, 30)))
    with pytest.raises(MarcliError, match=r"the loss of step 13 is nan"):
        run_training(again)
    healthy = start(recipe(nan_policy="stop", steps=30), tmp_path)  # a stricter policy counts anew
    run_training(healthy)
    assert all(torch.isfinite(value).all() for value in tensors(healthy).values())


@pytest.mark.parametrize("at", [7, 11, 12])
def test_a_signal_during_the_last_step_has_nothing_left_to_stop(recipe, start, tmp_path, at, monkeypatch):
    from marcli.training.loop import run_training

    job, taken = start(recipe(), tmp_path), []

    def update():
        taken.append(None)
        if len(taken) == at:
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(job.trained.ema, "update", update)
    if at < 12:
        with pytest.raises(StoppedError, match=rf"stopped by SIGUSR1 after step {at} of 12"):
            run_training(job)
    else:
        assert run_training(job) == 12
    assert len(taken) == checkpoint_steps(job.run.checkpoints)[-1] == at


def test_a_damaged_log_is_gone_on_with(recipe, start, tmp_path):
    from marcli.training.loop import run_training

    run_training(start(recipe(log_every=6), tmp_path))
    metrics = tmp_path / "metrics.jsonl"
    kept = metrics.read_bytes()
    metrics.write_bytes(kept + b'\xff\xfe\x00\n12\n{"loss": 1}\n{"step": 1')
    longer = start(recipe(log_every=6, steps=18), tmp_path)
    run_training(longer)
    assert metrics.read_bytes().startswith(kept)
    assert [line["step"] for line in lines(longer)] == [6, 12, 18]
