"""The tally against the plain distance, and the jackknife against the spread over real seeds."""

import numpy as np
import pytest
import torch

from marcli.bench.quality import Judge, Tally
from marcli.metrics.features import pixel_extractor
from marcli.metrics.frechet import frechet_distance
from marcli.metrics.references import Reference
from marcli.metrics.statistics import gaussian_from_features

SIDE = 2


def pictures(seed: int, count: int, shift: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 200 + shift, (count, 1, SIDE, SIDE), generator=generator, dtype=torch.uint8)


def judge_of(real: torch.Tensor) -> Judge:
    extractor = pixel_extractor()
    gaussian = gaussian_from_features(real.flatten(1).double().numpy() / 255 * 16)
    reference = Reference("made up", "0" * 64, gaussian, None, SIDE, extractor.identity, stated=True)
    return Judge(extractor, reference)


def test_tally_is_the_distance_of_all_pictures_at_once():
    real, made = pictures(0, 500), pictures(1, 330, shift=55)
    tally = Tally(judge_of(real))
    for batch in made.split(30):
        tally.add(batch)
    expected = frechet_distance(
        gaussian_from_features(made.flatten(1).double().numpy() / 255 * 16), tally.judge.reference.gaussian
    )
    assert tally.count == 330
    assert tally.distance()[0] == pytest.approx(expected, rel=1e-6)


def test_jackknife_is_the_spread_over_seeds():
    judge = judge_of(pictures(0, 5000))
    distances, errors = [], []
    for seed in range(1, 31):
        tally = Tally(judge)
        for batch in pictures(seed, 640, shift=55).split(40):
            tally.add(batch)
        distance, error = tally.distance()
        distances.append(distance)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(distances, ddof=1), rel=0.35)


def test_no_error_is_claimed_from_a_single_batch():
    tally = Tally(judge_of(pictures(0, 100)))
    tally.add(pictures(1, 50))
    assert tally.distance()[1] is None


def test_a_grey_codebook_in_three_channels_is_judged_by_one():
    real, made = pictures(0, 500), pictures(1, 330, shift=55)
    in_one, in_three = Tally(judge_of(real)), Tally(judge_of(real))
    in_one.add(made)
    in_three.add(made.expand(-1, 3, -1, -1))
    assert in_three.distance()[0] == pytest.approx(in_one.distance()[0], rel=1e-9)
