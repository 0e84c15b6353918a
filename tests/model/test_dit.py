"""The DiT comparator: what was undone in the library's network, and guidance as published."""

import math
from contextlib import nullcontext

import pytest
import torch
from pydantic import ValidationError

from marcli.sampling.engine.dit import DiTEngine
from tests.model import tiny


def test_one_embedding_is_shared_by_all_blocks_and_stored_once():
    model = tiny.model(tiny.recipe("dit", None, None))
    first, second = model.transformer.transformer_blocks
    assert first.norm1.emb is second.norm1.emb
    stored = [name for name in model.state_dict() if "norm1.emb" in name]
    assert stored and all(name.startswith("transformer.transformer_blocks.0.") for name in stored)


@pytest.mark.parametrize(("width", "fits"), [(10, False), (12, True), (14, False)])
def test_a_width_without_room_for_its_positions_is_refused(width, fits, monkeypatch):
    monkeypatch.setitem(tiny.BACKBONES, "dit", {"kind": "dit", "width": width, "depth": 1, "heads": 2})
    with nullcontext() if fits else pytest.raises(ValidationError, match=r"takes multiples of 4"):
        tiny.model(tiny.recipe("dit", None, None))


def test_training_mode_draws_nothing_by_itself():
    recipe = tiny.recipe("dit", None, None)
    model = tiny.model(recipe)
    latents, draws = tiny.latents(recipe, 64), tiny.draws(model, 64, 0)
    labels = torch.arange(64) % 10
    assert torch.equal(model.train()(latents, labels, draws, 0), model.eval()(latents, labels, draws, 0))


def test_time_embedding_has_the_published_frequencies():
    model = tiny.model(tiny.recipe("dit", None, None))
    t = torch.tensor([37.0])
    ours = model.transformer.transformer_blocks[0].norm1.emb.time_proj(t)[0]
    frequencies = torch.exp(-math.log(10000) * torch.arange(128) / 128)
    expected = torch.cat([(37.0 * frequencies).cos(), (37.0 * frequencies).sin()])
    assert torch.allclose(ours, expected, atol=1e-5)


@torch.inference_mode()
def test_guidance_acts_on_the_first_channels_of_eps_alone():
    recipe = tiny.recipe("dit", None, None, cfg=3.0)
    model = tiny.model(recipe)
    engine = DiTEngine(model, recipe)
    x, labels, t = torch.randn(2, 64, 1), torch.tensor([1, 2]), torch.full((2,), 500)
    eps, variance = model.denoise(x, t, labels).chunk(2, dim=-1)
    null, _ = model.denoise(x, t, torch.tensor([10, 10])).chunk(2, dim=-1)
    guided, kept = engine.predict(x, 500, labels)
    assert torch.allclose(guided, null + 3.0 * (eps - null), atol=1e-5) and torch.allclose(kept, variance, atol=1e-6)
    engine.guidance_channels = 0
    assert torch.allclose(engine.predict(x, 500, labels)[0], eps, atol=1e-6)


def test_dropped_labels_are_the_unconditional_one(monkeypatch):
    dit = tiny.model(tiny.recipe("dit", None, None))
    asked = []
    monkeypatch.setattr(dit, "denoise", lambda x, t, labels: asked.append(labels) or torch.zeros(*x.shape[:2], 2))
    draws = {
        "dropped": torch.tensor([True, False]),
        "t": torch.tensor([3, 9]),
        "noise": torch.zeros(2, 64, 1),
    }
    dit(torch.zeros(2, 1, 8, 8), torch.tensor([4, 5]), draws, 0)
    assert asked[0].tolist() == [10, 5]
