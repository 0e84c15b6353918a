"""What a training image and a picture draw: shares, orders and codes that matter."""

import pytest
import torch

from marcli.sampling.engine.fast import FastEngine
from marcli.sampling.engine.plain import PlainEngine
from tests.model.tiny import model, recipe


def test_the_recipes_share_of_labels_is_dropped():
    of = model(recipe("masked", "random", "l2"))
    generator = torch.Generator().manual_seed(0)
    dropped = torch.stack([of.draw(generator, 15)["dropped"] for _ in range(2000)])
    assert abs(dropped.float().mean().item() - 0.1) < 0.025


def test_a_causal_model_learns_its_first_token():
    assert model(recipe("causal", "raster", "l2")).num_known(torch.Generator()) == 0


@pytest.mark.parametrize("backbone", ["masked", "causal"])
def test_orders_are_the_recipes(backbone):
    generator = torch.Generator().manual_seed(0)
    raster, random = (model(recipe(backbone, order, "l2")).draw_order(generator) for order in ("raster", "random"))
    assert raster.tolist() == list(range(16))
    assert random.tolist() != list(range(16)) and sorted(random.tolist()) == list(range(16))


def test_pictures_have_orders_of_their_own():
    of = recipe("masked", "random", "diffusion")
    first, second = PlainEngine(model(of), of).draw_tape(seed=0, indices=[0, 1]).order.tolist()
    assert first != second


def test_codes_and_tables_start_apart():
    backbone = model(recipe("masked", "random", "cross_entropy")).backbone
    vectors = backbone.token_embed(torch.arange(24).view(1, 24, 1))[0]
    assert vectors.unique(dim=0).shape == (24, 32)
    assert 0.015 < backbone.decoder_position.std() < 0.025 and 0.015 < vectors.std() < 0.025


@pytest.mark.parametrize("solver", ["ddim", "dpm++2m"])
def test_temperature_acts_on_every_engine(solver):
    of = recipe("masked", "random", "diffusion", cfg=2.0, temperature=0.5, approximate={"solver": solver})
    whole = model(of)
    made = {}
    for engine in (PlainEngine(whole, of), FastEngine(whole, of)):
        tape = engine.draw_tape(seed=0, indices=[0, 1])
        made[engine.name] = engine.latents(labels=torch.tensor([1, 2]), tape=tape, on_step=None)
    assert (made["fast"] - made["plain"]).abs().max() <= 1e-5 * made["plain"].abs().max()
    hot = recipe("masked", "random", "diffusion", cfg=2.0, approximate={"solver": solver})
    other = PlainEngine(whole, hot)
    tape = other.draw_tape(seed=0, indices=[0, 1])
    assert not torch.allclose(other.latents(labels=torch.tensor([1, 2]), tape=tape, on_step=None), made["plain"])


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ({"diffusion_steps": 4, "approximate": {"final_diffusion_steps": 5}}, "diffusion steps fall to it"),
        ({"diffusion_steps": 1}, "at least 2"),
        ({"approximate": {"final_diffusion_steps": 1}}, "at least 2"),
    ],
)
def test_diffusion_steps_that_cannot_be_are_refused(sample, words):
    with pytest.raises(ValueError, match=words):
        recipe("masked", "random", "diffusion", **sample)
