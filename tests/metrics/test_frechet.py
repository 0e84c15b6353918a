"""The Frechet term against scipy's matrix square root, exact nuclear norms, and degenerate sets."""

import numpy as np
import pytest

from marcli.errors import MarcliError
from marcli.metrics.frechet import frechet_distance
from marcli.metrics.statistics import Gaussian, RunningMoments, gaussian_from_features


def features(seed: int, count: int, dim: int, shift: float = 0.0) -> np.ndarray:
    """Correlated features with a spectrum like a network's: a few strong directions, many weak ones."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(dim, dim)) * np.geomspace(1.0, 0.03, dim)
    return np.maximum(rng.normal(size=(count, dim)) @ mixing.T / np.sqrt(dim) + shift, -0.3) + 0.3


def scipy_distance(first: np.ndarray, second: np.ndarray) -> float:
    sqrtm = pytest.importorskip("scipy.linalg").sqrtm
    covariances = [np.cov(part, rowvar=False) for part in (first, second)]
    shift = first.mean(0) - second.mean(0)
    root = sqrtm(covariances[0] @ covariances[1]).real
    return float(shift @ shift + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(root))


def test_full_rank_equals_scipy():
    first, second = features(0, 900, 96), features(1, 700, 96, shift=0.1)
    distance = frechet_distance(gaussian_from_features(first), gaussian_from_features(second))
    assert distance == pytest.approx(scipy_distance(first, second), rel=1e-8)


def test_one_dimension_by_hand():
    first = Gaussian(mean=np.array([1.0]), covariance=np.array([[4.0]]), factor=None, count=None)
    second = Gaussian(mean=np.array([-1.0]), covariance=np.array([[9.0]]), factor=None, count=None)
    assert frechet_distance(first, second) == pytest.approx(4 + 1)  # (1 - -1)^2 + (2 - 3)^2


@pytest.mark.parametrize("few", ["first", "second", "both"])
def test_fewer_images_than_dimensions_is_exact(few):
    """Rank-deficient covariances against the value in a rotated basis where both fit in full-rank blocks."""
    dim = 64
    first = features(2, 20 if few != "second" else 500, dim)
    second = features(3, 30 if few != "first" else 500, dim)
    # The nuclear norm of F1 F2' for plain centred factors, whatever the number of rows.
    factors = [(part - part.mean(0)) / np.sqrt(len(part) - 1) for part in (first, second)]
    root = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    shift = first.mean(0) - second.mean(0)
    expected = shift @ shift + sum((factor**2).sum() for factor in factors) - 2 * root
    distance = frechet_distance(gaussian_from_features(first), gaussian_from_features(second))
    assert distance == pytest.approx(expected, rel=1e-11)


def test_singular_covariances_without_features():
    """Published moments carry no factor: constant dimensions must still give a distance."""
    first, second = features(4, 300, 24), features(5, 300, 24)
    first[:, 3] = second[:, 3] = 0.25
    first[:, 7] = 1.0
    gaussians = [gaussian_from_features(part) for part in (first, second)]
    kept = [i for i in range(24) if i not in (3, 7)]
    # A dimension constant in one set adds its mean shift and the other set's variance, and nothing else.
    reduced = [gaussian_from_features(part[:, kept]) for part in (first, second)]
    cross = (first[:, 7].mean() - second[:, 7].mean()) ** 2 + second[:, 7].var(ddof=1)
    distance = frechet_distance(*gaussians)
    assert distance == pytest.approx(frechet_distance(*reduced) + cross, rel=1e-6)
    assert frechet_distance(*gaussians[::-1]) == pytest.approx(distance, rel=1e-6)


def test_identical_sets_are_zero_and_never_negative():
    gaussian = gaussian_from_features(features(6, 40, 64))
    assert frechet_distance(gaussian, gaussian) == 0.0
    nudged = Gaussian(gaussian.mean, gaussian.covariance * (1 + 1e-15), None, gaussian.count)
    assert 0.0 <= frechet_distance(gaussian, nudged) < 1e-5


def test_a_shift_alone_and_a_spread_alone_count():
    gaussian = gaussian_from_features(features(6, 300, 16))
    shifted = Gaussian(gaussian.mean + 0.5, gaussian.covariance, None, None)
    assert frechet_distance(gaussian, shifted) == pytest.approx(16 * 0.25)
    wider = Gaussian(gaussian.mean, 4 * gaussian.covariance, None, None)  # (2 s - s)^2 in every direction
    assert frechet_distance(gaussian, wider) == pytest.approx(np.trace(gaussian.covariance))


def test_streaming_equals_one_pass_for_any_split():
    rows = features(7, 501, 32) + 1e3  # a large mean exposes sums of squares
    whole = gaussian_from_features(rows)
    parts = []
    for start, stop in ((0, 1), (1, 130), (130, 501)):
        part = RunningMoments(32)
        for begin in range(start, stop, 64):
            part.update(rows[begin : min(begin + 64, stop)])
        parts.append(part)
    parts[1].update(rows[:0])  # no pictures change nothing, wherever they come
    for part in (RunningMoments(32), *parts[1:]):
        parts[0].merge(part)
    merged = parts[0].gaussian()
    assert merged.count == 501
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-14)
    np.testing.assert_allclose(merged.covariance, np.cov(rows, rowvar=False), rtol=1e-9, atol=1e-11)


def test_bad_statistics_are_named():
    good = gaussian_from_features(features(8, 50, 8))
    with pytest.raises(MarcliError, match="8 dimensions and the reference has 7"):
        frechet_distance(good, gaussian_from_features(features(8, 50, 7)))
    with pytest.raises(MarcliError, match="NaN or infinity"):
        frechet_distance(good, Gaussian(good.mean * np.nan, good.covariance, None, None))
    rows = features(9, 20, 8)
    rows[5, 2] = np.nan
    with pytest.raises(MarcliError, match=r"1 of 20 images are not finite \(the first is image 5"):
        gaussian_from_features(rows)
    with pytest.raises(MarcliError, match="at least 2 images, but there are 1"):
        gaussian_from_features(rows[:1])
    alone = RunningMoments(8)
    alone.update(rows[:1])
    with pytest.raises(MarcliError, match="at least 2 images, but there are 1"):
        alone.gaussian()
