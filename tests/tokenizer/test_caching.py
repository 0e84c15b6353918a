"""Caching that is stopped, killed or begun anew: what a cache keeps of an attempt, and how soon it ends."""

import os
import signal
from pathlib import Path

import pytest

from marcli.cli.app import run
from marcli.data.latents import LatentCache
from marcli.tokenizer import caching
from marcli.tokenizer.pixels import PixelsTokenizer

RECIPE = Path(__file__).parents[2] / "recipes" / "digits.yaml"
STOPPED = 75


def cache(folder: Path, *overrides: str) -> int:
    return run(["cache-latents", str(RECIPE), f"data.latents={folder}", *overrides, "--gpus", "0"])


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
