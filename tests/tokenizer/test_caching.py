"""Caching that is stopped, killed or begun anew: what a cache keeps of an attempt, and how soon it ends."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from marcli.cli.app import run
from marcli.data.images import open_images
from marcli.data.latents import LatentCache
from marcli.errors import MarcliError, StoppedError
from marcli.recipe.reader import read_recipe
from marcli.runtime.accelerator import Processes, start_processes
from marcli.tokenizer import caching
from marcli.tokenizer.caching import cache_latents
from marcli.tokenizer.pixels import PixelsTokenizer

RECIPE = Path(__file__).parents[2] / "recipes" / "digits.yaml"
STOPPED = 75


@pytest.fixture(scope="module")
def processes() -> Processes:
    return start_processes(precision="fp32", gpus="0")


def cache(folder: Path, *overrides: str) -> int:
    return run(["cache-latents", str(RECIPE), f"data.latents={folder}", *overrides, "--gpus", "0"])


def test_a_tokenizer_of_an_attempt_without_a_plan_is_made_anew(processes, tmp_path, monkeypatch) -> None:
    """It may have been measured on other images."""
    recipe = read_recipe(RECIPE, [])
    images = open_images(recipe.data)
    images._pixels = images._pixels // 4  # what lies at data.path at first

    def full_disk(*_) -> None:
        raise MarcliError("full")

    with monkeypatch.context() as patched, pytest.raises(MarcliError):
        patched.setattr(caching, "begin", full_disk)
        cache_latents(recipe, images, folder=tmp_path / "again", processes=processes)
    hashes = [
        cache_latents(recipe, open_images(recipe.data), folder=tmp_path / name, processes=processes).manifest["hash"]
        for name in ("again", "new")
    ]
    assert hashes[0] == hashes[1]


def test_leftovers_of_a_killed_attempt_are_removed(tmp_path) -> None:
    (tmp_path / ".tokenizer.partial-0123").mkdir()
    (tmp_path / ".plan.partial-0123.json").write_text("{")
    assert cache(tmp_path) == 0
    assert not list(tmp_path.glob(".*"))


def test_a_signal_before_the_first_shard_stops_at_once(tmp_path, monkeypatch) -> None:
    def measure(*_, **__) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("went on")

    monkeypatch.setattr(caching, "prepare_tokenizer", measure)
    assert cache(tmp_path) == STOPPED


def test_a_signal_stops_within_a_shard(tmp_path, monkeypatch, capsys) -> None:
    passes = 0

    def encode(self, images):
        nonlocal passes
        passes += 1
        if passes == 10:  # of eight a shard
            os.kill(os.getpid(), signal.SIGINT)
        return images

    scale = "tokenizer.scale=1.0"  # so that nothing is encoded to measure it
    with monkeypatch.context() as patched:
        patched.setattr(PixelsTokenizer, "encode", encode)
        assert cache(tmp_path, scale) == STOPPED
    assert passes == 10
    assert "finished shards are kept" in capsys.readouterr().err
    assert cache(tmp_path, scale) == 0
    assert "encoded 7 of 8 shards" in capsys.readouterr().out
    assert LatentCache(tmp_path, verify=True).num_images == 1797


def test_who_waits_for_the_others_stops_when_asked_to(processes, tmp_path, monkeypatch) -> None:
    recipe, waited = read_recipe(RECIPE, []), []
    one_of_two = SimpleNamespace(
        rank=0, world_size=2, is_main=True, wait=lambda: None, device=processes.device, precision="fp32",
        accelerator=processes.accelerator,
    )  # fmt: skip

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(caching, "time", SimpleNamespace(sleep=wait, monotonic=time.monotonic))
    with pytest.raises(StoppedError):
        cache_latents(recipe, open_images(recipe.data), folder=tmp_path, processes=one_of_two)
    assert len(waited) == 3
    assert cache(tmp_path) == 0  # what the other one was to do
