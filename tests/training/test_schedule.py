import math

import pytest

from marcli.training.schedule import learning_rate, total_steps, warmup_steps


def test_epochs_become_steps_rounded_up(recipe):
    train = recipe(steps=None, epochs=2.5, batch_size=64, warmup_steps=None, warmup_epochs=0.1).train
    assert total_steps(train, num_images=1000) == 40  # 2500 / 64 = 39.06
    assert warmup_steps(train, num_images=1000) == 2  # 100 / 64 = 1.6


def test_a_run_may_end_inside_its_warmup(recipe):
    for schedule in ("constant", "cosine"):
        train = recipe(lr=0.8, lr_schedule=schedule).train
        assert [learning_rate(train, step, warmup=8, total=2) for step in range(2)] == pytest.approx([0.1, 0.2])


def test_constant_rate_after_a_linear_warmup(recipe):
    train = recipe(lr=0.8, warmup_steps=4).train
    rates = [learning_rate(train, step, warmup=4, total=12) for step in range(12)]
    assert rates == pytest.approx([0.2, 0.4, 0.6] + [0.8] * 9)


def test_cosine_rate_falls_by_half_in_the_middle(recipe):
    train = recipe(lr=0.8, lr_schedule="cosine").train
    rates = [learning_rate(train, step, warmup=2, total=10) for step in range(10)]
    assert rates[:3] == pytest.approx([0.4, 0.8, 0.8])
    assert rates[6] == pytest.approx(0.4)
    assert rates[9] == pytest.approx(0.4 * (1 + math.cos(math.pi * 7 / 8)))
    assert all(rate > 0 for rate in rates)


def test_no_warmup_starts_at_the_peak(recipe):
    assert learning_rate(recipe(lr=0.8).train, 0, warmup=0, total=10) == 0.8
