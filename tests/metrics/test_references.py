"""References: ADM's files as they are, statistics made here, and what does not compare."""

import json
import os
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from marcli.errors import MarcliError, UsageError
from marcli.metrics import references, streamed
from marcli.metrics.features import Extractor, pixel_extractor
from marcli.metrics.inception import PUBLISHED
from marcli.metrics.pictures import open_pictures
from marcli.metrics.references import check_comparable, measure, open_reference, read_statistics, write_statistics
from marcli.recipe.data import Data
from marcli.runtime.atomic import sha256_file
from tests.metrics.team import OneOf

ALONE = {"processes": OneOf(), "workers": 1}


def archive(path: Path, *, count: int = 30, size: int = 8, seed: int = 0, **more: np.ndarray) -> Path:
    images = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    np.savez(path, arr_0=images, **more)
    return path


def colour_means(protocol: str = "legacy_tensorflow") -> Extractor:
    """Stands for Inception: three features, the mean of each channel."""
    return Extractor(
        "inception", protocol, "0" * 64, torch.Tensor.float, lambda x: x.mean((2, 3)), None, torch.device("cpu")
    )


def test_adm_file_with_moments_and_pictures_gives_each_to_its_metric(tmp_path, monkeypatch):
    monkeypatch.setenv("MARCLI_CACHE", str(tmp_path / "cache"))
    mu, sigma = np.array([1.0, 2.0, 3.0], dtype=np.float32), np.eye(3, dtype=np.float32)
    path = archive(tmp_path / "VIRTUAL.npz", mu=mu, sigma=sigma, mu_s=mu, sigma_s=sigma)
    reference = open_reference(str(path), colour_means(), image_size=8, **ALONE)
    assert reference.gaussian.mean.dtype == np.float64
    np.testing.assert_array_equal(reference.gaussian.mean, mu)
    images = np.load(path)["arr_0"]
    np.testing.assert_allclose(reference.features, images.mean((1, 2)), rtol=1e-6)
    again = open_reference(str(path), colour_means(), image_size=8, **ALONE)  # now from the cache
    np.testing.assert_array_equal(again.features, reference.features)
    assert reference.sha256 == again.sha256 == sha256_file(path)
    assert check_comparable(reference, colour_means(), image_size=8, dim=3) == []


class Watched:
    """Stands for a network and counts the pictures it sees."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        return images.mean((2, 3))


def test_a_runs_own_pictures_are_measured_again_when_they_or_the_network_change(tmp_path, monkeypatch):
    """The fingerprint of the data lets a copied set resume, so it cannot tell a file rewritten at equal length."""
    monkeypatch.setenv("MARCLI_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "set" / f"{number}.bmp")
    data, network = Data(path=str(tmp_path / "set"), image_size=8, num_classes=1), Watched()

    def opened(**changes: str) -> np.ndarray:
        extractor = replace(colour_means(), network=network, **changes)
        return open_reference(data, extractor, image_size=8, **ALONE).gaussian.mean

    def measured(**changes: str) -> int:
        before = network.seen
        opened(**changes)
        return network.seen - before - 1  # one blank picture asks for the number of features

    assert [measured(), measured()] == [4, 0]
    Image.fromarray(255 - images[0]).save(tmp_path / "set" / "0.bmp")
    os.utime(tmp_path / "set" / "0.bmp", ns=(0, 10**15))
    assert [measured(), measured()] == [4, 0]
    images[0] = 255 - images[0]
    np.testing.assert_allclose(opened(), images.mean((0, 1, 2)), rtol=1e-5)
    assert [measured(weights_sha256="1" * 64), measured(protocol="clean"), measured()] == [4, 4, 0]


@pytest.mark.parametrize("damage", ["flip", "cut", "no hash"])
def test_a_damaged_reference_in_the_cache_is_measured_again(tmp_path, monkeypatch, caplog, damage):
    monkeypatch.setenv("MARCLI_CACHE", str(tmp_path / "cache"))
    path, network = archive(tmp_path / "x.npz"), Watched()
    extractor = replace(colour_means(), network=network)
    first = open_reference(str(path), extractor, image_size=8, **ALONE)
    [kept] = (tmp_path / "cache" / "references").glob("*.npz")
    content = bytearray(kept.read_bytes())
    content[300] ^= 1
    if damage == "no hash":
        kept.with_suffix(".json").write_text("{}")
    else:
        kept.write_bytes(content if damage == "flip" else content[:300])
    again = open_reference(str(path), extractor, image_size=8, **ALONE)
    assert network.seen == 2 * 31 and caplog.text.count("is damaged: the reference is measured again") == 1
    np.testing.assert_array_equal(again.features, first.features)
    assert first.sha256 == again.sha256 == sha256_file(path)
    kept_now = open_reference(str(path), extractor, image_size=8, **ALONE)
    assert network.seen == 2 * 31 + 1 and kept_now.record() == first.record()


def test_a_cache_that_takes_nothing_costs_no_measurement(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MARCLI_CACHE", str(tmp_path / "file" / "cache"))
    path, network = archive(tmp_path / "x.npz"), Watched()
    made = open_reference(str(path), replace(colour_means(), network=network), image_size=8, **ALONE)
    assert network.seen == 31 and len(made.features) == 30
    assert caplog.text.count("cannot be written") == 1 and "damaged" not in caplog.text


def test_other_weights_of_the_same_network_do_not_compare(tmp_path):
    source = open_pictures(str(archive(tmp_path / "x.npz")), image_size=None)
    first, second = (replace(colour_means(), weights_sha256=sha256) for sha256 in PUBLISHED)
    made = measure(source, first, num=None, **ALONE)
    assert check_comparable(made, first, image_size=8, dim=3) == []
    [warning] = check_comparable(made, second, image_size=8, dim=3)
    assert "the other published file of Inception" in warning
    for theirs, ours in (("a" * 64, "b" * 64), (first.weights_sha256, "b" * 64), ("a" * 64, first.weights_sha256)):
        made = measure(source, replace(first, name="net.pt", weights_sha256=theirs), num=None, **ALONE)
        with pytest.raises(UsageError, match=f"other weights of net.pt .*{theirs}, and here {ours}.*--make-stats"):
            check_comparable(made, replace(first, name="net.pt", weights_sha256=ours), image_size=8, dim=3)


def test_moments_alone_lack_the_pictures_for_precision_and_recall(tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(3), sigma=np.eye(3))
    reference = open_reference(str(tmp_path / "stats.npz"), colour_means(), image_size=64, **ALONE)
    [warning] = check_comparable(reference, colour_means(), image_size=64, dim=3)
    assert "Precision, recall and KID need" in warning and "10,000 pictures" in warning
    warnings = check_comparable(reference, colour_means("clean"), image_size=64, dim=3)
    assert warnings[0].startswith("stats.npz does not say which network and resizing")


def test_statistics_round_trip_and_know_what_they_are(tmp_path):
    extractor, source = pixel_extractor(), open_pictures(str(archive(tmp_path / "x.npz", count=400)), image_size=None)
    made = measure(source, extractor, num=None, **ALONE)
    beside = write_statistics(made, tmp_path / "stats.npz")
    read = read_statistics(tmp_path / "stats.npz")
    np.testing.assert_array_equal(read.gaussian.covariance, made.gaussian.covariance)
    np.testing.assert_array_equal(read.features, made.features)
    assert (read.identity, read.image_size, read.gaussian.count) == (extractor.identity, 8, 400)
    assert json.loads(beside.read_text())["sha256"] == read.sha256
    with pytest.raises(UsageError, match="made with features 'pixels', and the samples are measured with 'inception'"):
        check_comparable(read, colour_means(), image_size=8, dim=192)
    with pytest.raises(UsageError, match="made from pictures of 8 pixels, and the samples have 16"):
        check_comparable(read, extractor, image_size=16, dim=192)
    with pytest.raises(UsageError, match="192 dimensions and the samples' features 64"):
        check_comparable(read, extractor, image_size=8, dim=64)


def test_more_pictures_than_are_kept_stream_to_the_same_moments(tmp_path, monkeypatch):
    source = open_pictures(str(archive(tmp_path / "x.npz", count=700, size=4)), image_size=None)
    whole = measure(source, pixel_extractor(), num=None, **ALONE)
    monkeypatch.setattr(references, "KEPT_FEATURES", 100)
    streamed = measure(source, pixel_extractor(), num=None, **ALONE)
    assert streamed.features.shape == (100, 48) and streamed.gaussian.count == 700
    np.testing.assert_allclose(streamed.gaussian.covariance, whole.gaussian.covariance, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_processes_share_more_pictures_than_are_kept(tmp_path, monkeypatch, world_size):
    """700 pictures are three units: two shares of unequal size, three equal ones, or three and an empty one."""
    source = open_pictures(str(archive(tmp_path / "x.npz", count=700, size=4)), image_size=None)
    monkeypatch.setattr(references, "KEPT_FEATURES", 100)
    alone = measure(source, pixel_extractor(), num=None, **ALONE)
    sent: dict[int, bytes] = {}

    def gather(parts: list, mine: object, *, rank: int) -> None:
        sent[rank] = pickle.dumps(mine)
        parts[:] = [pickle.loads(sent.get(other, sent[rank])) for other in range(world_size)]

    for rank in reversed(range(world_size)):  # the main process last, when all others have sent theirs
        monkeypatch.setattr(streamed.dist, "all_gather_object", partial(gather, rank=rank))
        team = {"processes": OneOf(rank, world_size), "workers": 1}
        together = measure(source, pixel_extractor(), num=None, **team)
        assert (together is None) == (rank != 0)
    assert together.gaussian.count == 700
    np.testing.assert_array_equal(together.features, alone.features)
    np.testing.assert_allclose(together.gaussian.mean, alone.gaussian.mean, rtol=1e-12)
    np.testing.assert_allclose(together.gaussian.covariance, alone.gaussian.covariance, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kept", [50, 10_000])
def test_grey_pictures_count_one_channel(tmp_path, monkeypatch, kept):
    monkeypatch.setattr(references, "KEPT_FEATURES", kept)
    grey = np.random.default_rng(0).integers(0, 256, (90, 4, 4, 1), dtype=np.uint8)
    np.savez(tmp_path / "grey.npz", arr_0=grey)
    np.savez(tmp_path / "rgb.npz", arr_0=grey.repeat(3, axis=3))
    first, second = (
        measure(open_pictures(str(tmp_path / name), image_size=None), pixel_extractor(), num=None, **ALONE)
        for name in ("grey.npz", "rgb.npz")
    )
    assert first.gaussian.dim == 16
    np.testing.assert_array_equal(first.gaussian.covariance, second.gaussian.covariance)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"mu": np.zeros(3)}, "no mu and sigma; it has mu"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, "do not belong together"),
        ({"mu": np.zeros(3), "sigma": np.eye(3) * np.nan}, "holds NaN"),
        ({"mu": np.array([None, 1]), "sigma": np.eye(2)}, "Python objects"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, "do not belong together"),
        ({"mu": np.array(["a", "b"]), "sigma": np.eye(2)}, "mu is <U1, not real numbers"),
        ({"mu": np.zeros(2), "sigma": np.eye(2) * 1j}, "sigma is complex128, not real numbers"),
        ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "sigma is no covariance"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [0.4, 1.0]])}, "sigma is no covariance"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 2.0], [2.0, 1.0]])}, "sigma is no covariance"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "features": np.zeros(())}, r"features \[\] and mu \[2\] do not"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "features": np.zeros(9)}, r"features \[9\] and mu \[2\] do not"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "features": np.zeros((9, 3))}, r"\[9, 3\] and mu \[2\] do not"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "features": np.array(["x"])}, "features is <U1, not real"),
    ],
)
def test_damaged_statistics(tmp_path, arrays, words):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(MarcliError, match=words):
        read_statistics(tmp_path / "x.npz")


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_singular_covariance_and_one_that_was_rounded_are_taken(tmp_path, kind):
    rows = np.random.default_rng(0).normal(size=(20, 64)) * np.geomspace(1, 1e4, 64)
    for sigma in (np.cov(rows, rowvar=False), np.zeros((64, 64))):
        np.savez(tmp_path / "x.npz", mu=rows.mean(axis=0), sigma=sigma.astype(kind))
        assert read_statistics(tmp_path / "x.npz").gaussian.dim == 64


def test_pictures_of_another_resolution_are_refused(tmp_path):
    path = archive(tmp_path / "x.npz", size=8)
    with pytest.raises(UsageError, match="8 pixels, and the samples have 4"):
        open_reference(str(path), pixel_extractor(), image_size=4, **ALONE)
