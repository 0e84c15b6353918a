"""Collecting features: any number of processes, interruptions and damaged files end in the same features."""

import signal

import numpy as np
import pytest
import torch

from marcli.errors import MarcliError, StoppedError
from marcli.metrics import spool
from marcli.metrics.collect import collect_pictures
from marcli.metrics.features import Extractor
from marcli.metrics.pictures import open_pictures
from tests.metrics.team import OneOf


class Counting:
    """A network of random features that counts pictures and can send this process a signal."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.seen, self.stop_after = 0, stop_after
        self.weight = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        if self.stop_after is not None and self.seen >= self.stop_after:
            signal.raise_signal(signal.SIGTERM)
        return torch.tanh(images.flatten(1) / 255 @ self.weight)


def extractor_of(network: Counting) -> Extractor:
    return Extractor("counting", "none", "1" * 64, torch.Tensor.float, network, None, torch.device("cpu"))


@pytest.fixture
def source(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (1000, 4, 4, 3), dtype=np.uint8)
    images[7] = 9
    np.savez(tmp_path / "x.npz", arr_0=images)
    return open_pictures(str(tmp_path / "x.npz"), image_size=None)


def run(source, folder, network, *, rank: int = 0, world_size: int = 1, indices=range(1000)):
    return collect_pictures(
        source,
        np.array(indices),
        extractor_of(network),
        folder=folder,
        processes=OneOf(rank, world_size),
        workers=2,
    )


def test_each_picture_counts_once_in_its_place(source, tmp_path):
    network = Counting()
    collected = run(source, tmp_path / "eval", network)
    expected = network(source.read(range(1000)).float()).numpy()
    assert network.seen == 2000
    np.testing.assert_allclose(collected.features, expected, rtol=1e-5, atol=1e-6)
    assert np.flatnonzero(collected.blank).tolist() == [7]


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_work_and_change_nothing(source, tmp_path, world_size):
    alone = run(source, tmp_path / "alone", Counting())
    networks = [Counting() for _ in range(world_size)]
    for rank in reversed(range(1, world_size)):
        assert run(source, tmp_path / "shared", networks[rank], rank=rank, world_size=world_size) is None
    together = run(source, tmp_path / "shared", networks[0], world_size=1)
    np.testing.assert_array_equal(together.features, alone.features)
    assert sum(network.seen for network in networks) == 1000 and all(network.seen > 0 for network in networks)


def test_the_main_process_says_when_others_wrote_elsewhere(source, tmp_path):
    with pytest.raises(MarcliError, match="all processes must see the same folder"):
        run(source, tmp_path / "eval", Counting(), rank=0, world_size=2)


def test_a_stopped_evaluation_continues_with_the_same_pictures(source, tmp_path):
    whole = run(source, tmp_path / "whole", Counting())
    first = Counting(stop_after=300)
    with pytest.raises(StoppedError, match="the same command continues"):
        run(source, tmp_path / "eval", first)
    second = Counting()
    collected = run(source, tmp_path / "eval", second)
    assert first.seen == 512 and second.seen == 1000 - 512
    np.testing.assert_array_equal(collected.features, whole.features)
    third = Counting()
    run(source, tmp_path / "eval", third)
    assert third.seen == 0


def test_stored_features_are_read_once(source, tmp_path, monkeypatch):
    whole = run(source, tmp_path / "eval", Counting())
    read, read_files = spool.read_hashed, []
    monkeypatch.setattr(
        spool, "read_hashed", lambda path, *rest, **more: read_files.append(path) or read(path, *rest, **more)
    )
    np.testing.assert_array_equal(run(source, tmp_path / "eval", Counting()).features, whole.features)
    assert len(read_files) == len(set(read_files)) == 4


def test_a_signal_during_the_last_unit_is_not_lost(source, tmp_path):
    with pytest.raises(StoppedError, match="the same command continues"):
        run(source, tmp_path / "eval", Counting(stop_after=1000))
    again = Counting()
    run(source, tmp_path / "eval", again)
    assert again.seen == 0


def test_more_pictures_reuse_those_of_fewer(source, tmp_path):
    whole = run(source, tmp_path / "whole", Counting())
    run(source, tmp_path / "eval", Counting(), indices=range(600))
    network = Counting()
    collected = run(source, tmp_path / "eval", network)
    assert network.seen == 1000 - 512  # the unit that was cut at 600 is done again as a whole
    np.testing.assert_array_equal(collected.features, whole.features)
    np.testing.assert_array_equal(collected.blank, whole.blank)


def test_other_pictures_between_the_same_ends_never_meet(source, tmp_path, caplog):
    chosen = [*range(0, 255, 2), 255]
    run(source, tmp_path / "eval", Counting(), indices=range(256))
    collected = run(source, tmp_path / "eval", Counting(), indices=chosen)
    expected = Counting()(source.read(chosen).float()).numpy()
    np.testing.assert_allclose(collected.features, expected, rtol=1e-5, atol=1e-6)
    assert not caplog.records


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_file_is_done_again(source, tmp_path, damage, caplog):
    whole = run(source, tmp_path / "eval", Counting())
    path = sorted((tmp_path / "eval").rglob("*.safetensors"))[1]
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content if damage == "flip" else content[:200])
    network = Counting()
    collected = run(source, tmp_path / "eval", network)
    assert network.seen == 256 and "its pictures are done again" in caplog.text
    np.testing.assert_array_equal(collected.features, whole.features)


def test_other_settings_never_meet(source, tmp_path):
    run(source, tmp_path / "eval", Counting())
    network = Counting()
    other = Extractor("counting", "none", "2" * 64, torch.Tensor.float, network, None, torch.device("cpu"))
    collect_pictures(source, np.arange(1000), other, folder=tmp_path / "eval", processes=OneOf(), workers=1)
    assert network.seen == 1000


def test_other_pictures_never_meet(source, tmp_path):
    run(source, tmp_path / "eval", Counting())
    np.savez(tmp_path / "y.npz", arr_0=255 - source.read(range(1000)).permute(0, 2, 3, 1).numpy())
    network = Counting()
    run(open_pictures(str(tmp_path / "y.npz"), image_size=None), tmp_path / "eval", network)
    assert network.seen == 1000
