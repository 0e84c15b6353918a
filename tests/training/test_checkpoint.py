"""A checkpoint is complete or it is not used."""

import errno
import multiprocessing
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from marcli.errors import MarcliError
from marcli.runtime.atomic import remove_partials
from marcli.training.checkpoint import (
    FILES,
    MANIFEST,
    Trained,
    checkpoint_path,
    checkpoint_steps,
    damage,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from marcli.training.ema import Ema


def make_trained(size=4, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(size, size), nn.LayerNorm(size))
    trained = Trained(model, Ema(model, decay=0.5), torch.optim.AdamW(model.parameters(), fused=True))
    model(torch.randn(2, size)).square().sum().backward()
    trained.optimizer.step()
    trained.ema.update()
    return trained


@pytest.fixture
def folder(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, make_trained(seed=step), {"step": step}, keep=2)
    return tmp_path


def test_the_newest_are_kept_and_come_back_as_they_were(folder):
    assert checkpoint_steps(folder) == [2, 3]
    path = newest_checkpoint(folder, pytest.fail)
    other, original = make_trained(seed=9), make_trained(seed=3)
    assert load_checkpoint(path, other) == {"step": 3}
    for name, value in original.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name])
        assert torch.equal(original.ema.state()[name], other.ema.state()[name])
    for mine, theirs in zip(original.model.parameters(), other.model.parameters(), strict=True):
        for slot, value in original.optimizer.state[mine].items():
            assert torch.equal(value, other.optimizer.state[theirs][slot]), slot


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "bit": flip_a_bit,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(folder, name, kind):
    DAMAGES[kind](checkpoint_path(folder, 3) / name)
    said = []
    assert newest_checkpoint(folder, said.append) == checkpoint_path(folder, 2)
    assert len(said) == 1 and "step-00000003 is damaged" in said[0]
    assert name in said[0] or (name == MANIFEST and kind == "bit")  # then the file of that hash is named
    assert checkpoint_steps(folder) == [2] and (folder / "damaged-step-00000003").is_dir()


def test_a_checkpoint_damaged_once_more_takes_the_place_of_the_one_set_aside(folder):
    for seed in (4, 5):
        save_checkpoint(folder, make_trained(seed=seed), {"step": 3}, keep=2)
        flip_a_bit(checkpoint_path(folder, 3) / "model.safetensors")
        damaged = (checkpoint_path(folder, 3) / "model.safetensors").read_bytes()
        assert newest_checkpoint(folder, lambda line: None) == checkpoint_path(folder, 2)
        assert (folder / "damaged-step-00000003" / "model.safetensors").read_bytes() == damaged
    assert checkpoint_steps(folder) == [2]


def test_nothing_sound_left_is_an_error_and_nothing_at_all_is_not(folder, tmp_path_factory):
    for step in (2, 3):
        flip_a_bit(checkpoint_path(folder, step) / "model.safetensors")
    with pytest.raises(MarcliError, match=r"no sound checkpoint is left in .* in another folder"):
        newest_checkpoint(folder, lambda line: None)
    assert checkpoint_steps(folder) == [2, 3]
    assert newest_checkpoint(tmp_path_factory.mktemp("new"), pytest.fail) is None


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
def test_a_checkpoint_that_cannot_be_read_now_is_not_set_aside(folder, monkeypatch, name):
    path_open = Path.open

    def failing(path, *arguments, **settings):
        if path.name == name:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return path_open(path, *arguments, **settings)

    monkeypatch.setattr(Path, "open", failing)
    monkeypatch.setattr(Path, "read_text", lambda path: failing(path).read())
    with pytest.raises(MarcliError, match=rf"{name} cannot be read now \(Input/output error\)"):
        newest_checkpoint(folder, pytest.fail)
    assert checkpoint_steps(folder) == [2, 3]


def test_a_full_disk_leaves_the_old_checkpoint(folder, monkeypatch):
    from marcli.training import checkpoint

    write = checkpoint.save_file

    def full(tensors, path):
        write(tensors, path)
        if "optimizer" in str(path):
            raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(MarcliError, match=r"No space left.*the checkpoint of step 3 is intact.*same command"):
        save_checkpoint(folder, make_trained(), {"step": 4}, keep=2)
    assert sorted(entry.name for entry in folder.iterdir()) == ["step-00000002", "step-00000003"]
    assert damage(checkpoint_path(folder, 3)) is None
    with pytest.raises(MarcliError, match=r"lower train.keep_checkpoints"):  # which makes room before it writes
        save_checkpoint(folder, make_trained(), {"step": 4}, keep=1)
    assert checkpoint_steps(folder) == [3]


def save_forever(folder, trained):
    torch.set_num_threads(1)
    for step in range(1, 10_000):
        save_checkpoint(folder, trained, {"step": step}, keep=2)


def test_killed_while_saving_a_sound_checkpoint_remains(tmp_path):
    """SIGKILL at ten moments, most of them inside a save, since saving is all the process does."""
    trained = make_trained(size=300)
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        writer = multiprocessing.get_context("fork").Process(target=save_forever, args=(folder, trained))
        writer.start()
        while len(checkpoint_steps(folder)) < 2:
            time.sleep(0.001)
        time.sleep(0.0037 * attempt)
        writer.kill()
        writer.join()
        left = checkpoint_steps(folder)
        remove_partials(folder)
        assert newest_checkpoint(folder, pytest.fail) == checkpoint_path(folder, left[-1])
        assert all(damage(checkpoint_path(folder, step)) is None for step in left)
        assert {entry.name for entry in folder.iterdir()} == {checkpoint_path(folder, step).name for step in left}


def test_the_checkpoint_of_another_model_is_refused_before_anything_is_set(folder):
    other = make_trained(size=5)
    before = {name: value.clone() for name, value in other.model.state_dict().items()}
    with pytest.raises(MarcliError, match=r"tensors of the checkpoint .* do not fit the model; .* of another shape"):
        load_checkpoint(newest_checkpoint(folder, print), other)
    assert all(torch.equal(value, before[name]) for name, value in other.model.state_dict().items())
