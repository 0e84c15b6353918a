"""Orders, mask ratios and reveal counts against closed forms and published counts."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from scipy import stats

from marcli.model.order import draw_mask_ratio, draw_order, random_order, reveal_counts
from marcli.recipe.model import Model
from tests.model.tiny import COMBINATIONS

names, _ = get_args(Model.model_fields["order"].annotation)
ORDERS = get_args(names)


@pytest.mark.parametrize(("steps", "largest"), [(32, 13), (64, 7), (128, 4), (256, 1)])
def test_largest_count_of_the_cosine_schedule(steps, largest):
    counts = reveal_counts(256, steps)
    assert len(counts) == steps and sum(counts) == 256 and min(counts) >= 1
    assert max(counts) == largest


def test_published_counts_of_eight_and_sixteen_steps():
    assert reveal_counts(256, 8) == [5, 15, 24, 31, 39, 45, 48, 49]
    assert reveal_counts(256, 16)[:4] == [2, 3, 7, 8] and reveal_counts(256, 16)[-1] == 25
    assert reveal_counts(256, 64)[-5:] == [6, 7, 6, 6, 6]


@pytest.mark.parametrize("name", ORDERS)
def test_every_order_of_the_recipe_reveals_each_token_once(name):
    assert sorted(draw_order(name, torch.Generator().manual_seed(0), 16).tolist()) == list(range(16))
    assert any(order == name for _, order, _ in COMBINATIONS), "no engine is tested with it"


def test_an_unknown_order_is_never_taken_for_another():
    with pytest.raises(ValueError, match="'spiral'"):
        draw_order("spiral", torch.Generator(), 16)


@pytest.mark.parametrize("steps", [0, 17])
def test_impossible_step_counts_are_refused(steps):
    with pytest.raises(ValueError, match="1 to 16"):
        reveal_counts(16, steps)


def test_mask_ratio_follows_the_truncated_normal():
    generator = torch.Generator().manual_seed(0)
    ratios = np.array([draw_mask_ratio(generator, 0.7, 0.25) for _ in range(4000)])
    assert ratios.min() >= 0.7 and ratios.max() <= 1.0
    law = stats.truncnorm((0.7 - 1.0) / 0.25, 0, loc=1.0, scale=0.25)
    assert stats.kstest(ratios, law.cdf).pvalue > 0.01
    assert abs(ratios.mean() - law.mean()) < 0.005


def test_random_orders_are_permutations_that_put_every_token_first_equally_often():
    generator = torch.Generator().manual_seed(0)
    orders = torch.stack([random_order(generator, 8) for _ in range(4000)])
    assert torch.equal(orders.sort(1).values, torch.arange(8).expand_as(orders))
    counts = torch.bincount(orders[:, 0], minlength=8)
    assert (counts - 500).abs().max() < 5 * math.sqrt(500)
