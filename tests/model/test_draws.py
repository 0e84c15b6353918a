"""What a training image draws, and tables that start apart."""

import pytest
import torch

from tests.model.tiny import model, recipe


def test_the_recipes_share_of_labels_is_dropped():
    of = model(recipe("masked", "random", "l2"))
    generator = torch.Generator().manual_seed(0)
    dropped = torch.stack([of.draw(generator, 15)["dropped"] for _ in range(2000)])
    assert abs(dropped.float().mean().item() - 0.1) < 0.025


def test_a_masked_model_knows_what_its_mask_ratio_leaves():
    """Of 16 tokens at least 70 % are hidden, which rounds up to 12, and often nearly all."""
    of, generator = model(recipe("masked", "random", "l2")), torch.Generator().manual_seed(0)
    known = [of.num_known(generator) for _ in range(500)]
    assert set(known) == {0, 1, 2, 3, 4}
    assert 1.2 < sum(known) / len(known) < 2.0


def test_a_causal_model_learns_its_first_token():
    assert model(recipe("causal", "raster", "l2")).num_known(torch.Generator()) == 0


@pytest.mark.parametrize("backbone", ["masked", "causal"])
def test_orders_are_the_recipes(backbone):
    generator = torch.Generator().manual_seed(0)
    raster, random = (model(recipe(backbone, order, "l2")).draw_order(generator) for order in ("raster", "random"))
    assert raster.tolist() == list(range(16))
    assert random.tolist() != list(range(16)) and sorted(random.tolist()) == list(range(16))


def test_codes_and_tables_start_apart():
    backbone = model(recipe("masked", "random", "cross_entropy")).backbone
    vectors = backbone.token_embed(torch.arange(24).view(1, 24, 1))[0]
    assert vectors.unique(dim=0).shape == (24, 32)
    assert 0.015 < backbone.decoder_position.std() < 0.025 and 0.015 < vectors.std() < 0.025
