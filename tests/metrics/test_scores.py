"""IS, KID, precision and recall against torch-fidelity, clean-fid and ADM's formulas on the same features."""

import numpy as np
import pytest
import torch

from marcli.errors import MarcliError
from marcli.metrics import scores
from marcli.metrics.frechet import frechet_distance
from marcli.metrics.statistics import gaussian_from_features
from tests.metrics import adm_suite


@pytest.fixture(scope="module")
def sets():
    """Two sets of features [n, 48], overlapping in part, and the logits of the first."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(48, 48)) * np.geomspace(1, 0.05, 48)
    samples = np.maximum(rng.normal(size=(620, 48)) @ mixing.T / 6, 0)
    reference = np.maximum(rng.normal(size=(540, 48)) @ mixing.T / 6 + 0.1, 0)
    logits = samples @ rng.normal(size=(48, 30)) * 3
    return samples, reference, logits


def test_agrees_with_torch_fidelity(sets):
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import calculate_precision_recall_part

    samples, reference, logits = sets
    theirs = isc_features_to_metric(torch.from_numpy(logits), splits=10, shuffle=True, rng_seed=2020)
    order, edges = scores.fidelity_splits(len(logits))
    ours = scores.inception_score(logits, order=order, edges=edges)
    assert ours.mean == pytest.approx(theirs["inception_score_mean"], rel=1e-10)
    assert ours.std == pytest.approx(theirs["inception_score_std"], rel=1e-8)

    tensors = torch.from_numpy(samples), torch.from_numpy(reference)
    theirs = kid_features_to_metric(*tensors, kid_subsets=100, kid_subset_size=540, rng_seed=2020, verbose=False)
    ours = scores.kernel_distance(samples, reference, subsets=scores.fidelity_subsets(620, 540))
    assert ours.mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    assert ours.std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-6)

    theirs = calculate_precision_recall_part(*tensors, neighborhood=3)
    assert scores.precision_recall(samples, reference, neighbours=3) == pytest.approx(theirs, rel=1e-6)

    theirs = fid.fid_statistics_to_metric(*(fid.fid_features_to_statistics(t) for t in tensors), verbose=False)
    ours = frechet_distance(*(gaussian_from_features(part) for part in (samples, reference)))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)


def test_splits_of_a_count_that_ten_does_not_divide(sets):
    """torch-fidelity cuts 617 images at 61, 123, 185, ...: each image is in one split."""
    isc = pytest.importorskip("torch_fidelity.metric_isc")
    logits = sets[2][:617]
    theirs = isc.isc_features_to_metric(torch.from_numpy(logits), splits=10, shuffle=True, rng_seed=2020)
    order, edges = scores.fidelity_splits(617)
    assert edges.tolist() == [0, 61, 123, 185, 246, 308, 370, 431, 493, 555, 617]
    ours = scores.inception_score(logits, order=order, edges=edges)
    assert ours.mean == pytest.approx(theirs["inception_score_mean"], rel=1e-10)
    assert ours.std == pytest.approx(theirs["inception_score_std"], rel=1e-8)


def test_lengths_of_the_second_set_are_computed_once(monkeypatch):
    points, seen = np.random.default_rng(4).normal(size=(1600, 3)), []
    lengths = scores.squared_lengths
    monkeypatch.setattr(scores, "squared_lengths", lambda rows: seen.append(len(rows)) or lengths(rows))
    scores.neighbour_radii(points, 3)
    assert sorted(seen) == [64, 512, 512, 512, 1600]


def test_agrees_with_clean_fid(sets):
    cleanfid = pytest.importorskip("cleanfid.fid")
    samples, reference, _ = sets
    np.random.seed(5)
    theirs = cleanfid.kernel_distance(samples, reference, num_subsets=20, max_subset_size=200)
    np.random.seed(5)
    pairs = []
    for _ in range(20):  # their draws: the second argument's first
        of_reference = np.random.choice(len(reference), 200, replace=False)
        pairs.append((np.random.choice(len(samples), 200, replace=False), of_reference))
    assert scores.kernel_distance(samples, reference, subsets=pairs).mean == pytest.approx(theirs, rel=1e-6)
    try:
        theirs = cleanfid.fid_from_feats(samples, reference)
    except TypeError:
        pytest.skip("this scipy no longer takes the argument that clean-fid passes to sqrtm")
    ours = frechet_distance(*(gaussian_from_features(part) for part in (samples, reference)))
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_agrees_with_adm_formulas(sets):
    samples, reference, logits = sets
    ours = scores.precision_recall(samples, reference, neighbours=3)
    assert ours == pytest.approx(adm_suite.precision_recall(reference, samples, 3), rel=1e-6)
    assert 0.1 < ours[0] < 0.95 and 0.1 < ours[1] < 0.95  # a comparison at 0 or 1 would show nothing

    order, edges = scores.adm_splits(len(logits))
    assert edges.tolist() == [0, 620] and scores.adm_splits(12000)[1].tolist() == [0, 5000, 10000, 12000]
    probabilities = torch.from_numpy(logits[order]).softmax(dim=1).numpy()
    edges = np.append(np.arange(0, 620, 100), 620)
    ours = scores.inception_score(logits, order=order, edges=edges)
    assert ours.mean == pytest.approx(adm_suite.inception_score(probabilities, 100), rel=1e-6)

    moments = [(part.mean(0), np.cov(part, rowvar=False)) for part in (samples, reference)]
    ours = frechet_distance(*(gaussian_from_features(part) for part in (samples, reference)))
    assert ours == pytest.approx(adm_suite.frechet(*moments), rel=1e-6)


def test_class_order_does_not_change_the_adm_protocol_into_nonsense():
    """10,000 images in class order: without the fixed permutation every chunk sees half of the classes."""
    logits = np.repeat(np.eye(100) * 20, 100, axis=0)
    order, edges = scores.adm_splits(10000)
    assert scores.inception_score(logits, order=order, edges=edges).mean == pytest.approx(100, rel=0.02)
    unshuffled = scores.inception_score(logits, order=np.arange(10000), edges=edges)
    assert unshuffled.mean == pytest.approx(50, rel=0.02)


def test_identical_and_constant_sets():
    points = np.random.default_rng(1).normal(size=(60, 8))
    assert scores.precision_recall(points, points, neighbours=3) == (1.0, 1.0)
    assert scores.precision_recall(points + 100, points, neighbours=3) == (0.0, 0.0)
    one_point = np.full((40, 8), 0.3)
    assert scores.precision_recall(one_point, points, neighbours=3)[1] == 0.0
    order, edges = scores.fidelity_splits(40)
    assert scores.inception_score(one_point, order=order, edges=edges).mean == pytest.approx(1.0)


def test_many_blocks_equal_one():
    rng = np.random.default_rng(2)
    samples, reference = rng.normal(size=(1200, 6)), rng.normal(size=(700, 6)) + 1.5
    assert scores.precision_recall(samples, reference, neighbours=3) == pytest.approx(
        adm_suite.precision_recall(reference, samples, 3), rel=1e-12
    )


def test_bad_features_are_named():
    good = np.random.default_rng(3).normal(size=(20, 4))
    bad = good.copy()
    bad[7, 1] = np.inf
    with pytest.raises(MarcliError, match="first is image 7"):
        scores.precision_recall(bad, good, neighbours=3)
    with pytest.raises(MarcliError, match="only 3 images"):
        scores.precision_recall(good[:3], good, neighbours=3)
    with pytest.raises(MarcliError, match="4 features and the reference 3"):
        scores.kernel_distance(good, good[:, :3], subsets=scores.fidelity_subsets(20, 20))
    with pytest.raises(MarcliError, match="at least 2 images on each side"):
        list(scores.fidelity_subsets(1, 20))
