"""A cache is written with pictures decoded ahead, to the last byte, and only with numbers that it can hold."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from marcli.data.cache_writer import _write_at, decode_shards, encode_shard
from marcli.data.latents import CachePlan
from marcli.errors import MarcliError


def plan_of(dtype: str) -> CachePlan:
    return CachePlan("", 2, 1, "", 1.0, num_images=2, flips=2, row_shape=(1, 2, 2), dtype=dtype, precision="fp32")


def test_as_many_pictures_as_a_shard_are_decoded_ahead_and_no_more() -> None:
    decoded = []
    images = SimpleNamespace(square=lambda index: decoded.append(index) or index)
    plan = SimpleNamespace(shard_range=lambda shard: range(3 * shard, 3 * shard + 3), shard_images=3)
    for shard, squares in decode_shards(images, plan, range(5), threads=2):
        assert squares == [3 * shard, 3 * shard + 1, 3 * shard + 2]
        due = list(range(min(3 * shard + 6, 15)))
        wait_until(lambda due=due: len(decoded) >= len(due))
        assert sorted(decoded) == due
    assert shard == 4


def wait_until(done: Callable[[], bool]) -> None:
    """Wait for other threads, a minute at most."""
    end = time.monotonic() + 60
    while not done() and time.monotonic() < end:
        time.sleep(0.001)


@pytest.mark.parametrize(("value", "fits"), [(65504.0, True), (-65504.0, True), (65536.0, False), (np.nan, False)])
def test_latents_that_16_bits_cannot_hold_are_refused(value: float, fits: bool) -> None:
    squares = [np.zeros((1, 2, 2), dtype=np.uint8)] * 2

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        rows = torch.zeros(len(pixels), 1, 2, 2)
        rows[1, 0, 1, 0] = value
        return rows

    if fits:
        rows = encode_shard(squares, plan_of("F16"), encode=encode)
        assert rows.dtype == np.float16 and rows[1, 0, 0].tolist() == [[0.0, 0.0], [value, 0.0]]
    else:
        with pytest.raises(MarcliError, match="overflow 16-bit floats"):
            encode_shard(squares, plan_of("F16"), encode=encode)


def test_a_system_that_writes_less_than_it_was_given_gets_the_rest(tmp_path: Path, monkeypatch) -> None:
    path, content, pwrite = tmp_path / "file", bytes(range(100)), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, view, offset: pwrite(descriptor, view[:7], offset))
    with path.open("wb") as file:
        _write_at(file.fileno(), content, 5)
    assert path.read_bytes() == bytes(5) + content
