"""The contestants of train_step.py take steps, so that the script cannot fall behind the code it measures."""

import math

import torch

from marcli.recipe.reader import read_recipe
from tests.benchmarks.train_step import our_step, plain_step

RECIPE = read_recipe("debug/head_diffusion", ["train.batch_size=4", "data.num_classes=1000"])


def test_both_ways_start_from_the_same_loss():
    ours, plain = our_step(RECIPE, "fp32", "0"), plain_step(RECIPE, "fp32", torch.device("cpu"))
    losses = [[float(step()) for _ in range(3)] for step in (ours, plain)]
    assert all(math.isfinite(loss) for each in losses for loss in each)
    assert abs(losses[0][0] - losses[1][0]) < 0.5, "about one per value: nothing is known of the noise yet"
    assert losses[0][0] > 0.5 and losses[1][0] > 0.5
