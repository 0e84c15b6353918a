"""A reference that is measured in several attempts."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from marcli.errors import StoppedError
from marcli.metrics import references, streamed
from marcli.metrics.features import pixel_extractor
from marcli.metrics.pictures import open_pictures
from marcli.metrics.references import measure
from tests.metrics.team import OneOf
from tests.metrics.test_references import ALONE, archive


@pytest.fixture(autouse=True)
def many_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("MARCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(references, "KEPT_FEATURES", 100)


@pytest.fixture
def source(tmp_path):
    return open_pictures(str(archive(tmp_path / "x.npz", count=700, size=4)), image_size=None)


def left(tmp_path):
    return sorted((tmp_path / "cache").rglob("unfinished-*"))


class Network:
    """Raw pixels; does something at a batch."""

    def __init__(self, at_batch, act):
        self.batches, self.at_batch, self.act = 0, at_batch, act

    def extractor(self):
        whole = pixel_extractor()

        def features(images):
            self.batches += 1
            if self.batches == self.at_batch:
                self.act()
            return whole.network(images)

        return replace(whole, network=features)


class Killed(BaseException):
    """Stands for a kill."""


def die():
    raise Killed


def same(ours, theirs):
    np.testing.assert_array_equal(ours.features, theirs.features)
    np.testing.assert_array_equal(ours.gaussian.mean, theirs.gaussian.mean)
    np.testing.assert_array_equal(ours.gaussian.covariance, theirs.gaussian.covariance)


def test_a_measurement_goes_on_where_it_was_killed(source, tmp_path, monkeypatch):
    whole = measure(source, pixel_extractor(), num=None, **ALONE)
    monkeypatch.setattr(streamed, "KEPT_EVERY", 0.0)
    killed = Network(8, die)
    with pytest.raises(Killed):
        measure(source, killed.extractor(), num=None, **ALONE)
    assert len(left(tmp_path)) == 1
    rest = Network(None, None)
    same(measure(source, rest.extractor(), num=None, **ALONE), whole)
    assert killed.batches == 8 and rest.batches == 12 - 7, "700 pictures are 4 + 4 + 4 batches"
    assert left(tmp_path) == []


def test_a_signal_keeps_what_was_measured(source, tmp_path):
    whole = measure(source, pixel_extractor(), num=None, **ALONE)
    asked = Network(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(StoppedError, match=r"kept in .*unfinished-.*: the same command continues"):
        measure(source, asked.extractor(), num=None, **ALONE)
    rest = Network(None, None)
    same(measure(source, rest.extractor(), num=None, **ALONE), whole)
    assert asked.batches == 5 and rest.batches == 7


def test_what_is_kept_is_named_by_all_that_it_depends_on(source, tmp_path):
    other = open_pictures(str(archive(tmp_path / "y.npz", count=700, size=4, seed=1)), image_size=None)
    network, chosen, kept = pixel_extractor(), np.arange(700), np.arange(100)
    measurements = [
        (source, chosen, kept, network, OneOf()),
        (other, chosen, kept, network, OneOf()),
        (source, chosen[1:], kept, network, OneOf()),
        (source, chosen, kept[1:], network, OneOf()),
        (source, chosen, kept, replace(network, protocol="another"), OneOf()),
        (source, chosen, kept, network, OneOf(0, 2)),
        (source, chosen, kept, network, OneOf(1, 2)),
    ]
    assert len({streamed.unfinished_path(*each) for each in measurements}) == len(measurements)


def test_only_the_features_asked_for_are_held(source):
    _, rows = streamed.stream_features(source, np.arange(700), np.array([3, 500]), pixel_extractor(), **ALONE)
    assert sorted(rows) == [3, 500]


def test_what_is_damaged_is_measured_again(source, tmp_path, monkeypatch, caplog):
    whole = measure(source, pixel_extractor(), num=None, **ALONE)
    monkeypatch.setattr(streamed, "KEPT_EVERY", 0.0)
    for damage in (lambda data: data[: len(data) // 2], lambda data: data[:-9] + bytes(9)):
        with pytest.raises(Killed):
            measure(source, Network(8, die).extractor(), num=None, **ALONE)
        [path] = left(tmp_path)
        path.write_bytes(damage(path.read_bytes()))
        same(measure(source, pixel_extractor(), num=None, **ALONE), whole)
        assert f"{path} is damaged" in caplog.text
        caplog.clear()


def test_a_cache_that_takes_nothing_costs_no_measurement(source, tmp_path, monkeypatch, caplog):
    whole = measure(source, pixel_extractor(), num=None, **ALONE)
    (tmp_path / "cache").mkdir(exist_ok=True)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MARCLI_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(streamed, "KEPT_EVERY", 0.0)
    same(measure(source, pixel_extractor(), num=None, **ALONE), whole)
    said = [record.message for record in caplog.records if "unfinished" in record.message]
    assert len(said) == 1 and "cannot be written" in said[0]
