"""A causal backbone never looks ahead, and a cache changes nothing but the time."""

import pytest
import torch

from tests.model import tiny


@pytest.fixture(params=["raster", "random"])
def causal(request):
    recipe = tiny.recipe("causal", request.param, "diffusion")
    model = tiny.model(recipe)
    generator = torch.Generator().manual_seed(3)
    order = torch.stack([model.draw_order(generator) for _ in range(3)])
    return model, torch.randn(3, 16, 4, generator=generator), order, model.condition(torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("k", [0, 5, 14])
def test_changing_token_k_leaves_what_comes_before_bit_equal(causal, k):
    model, tokens, order, condition = causal
    before = model.backbone(tokens, order, condition, 0)
    changed = tokens.clone()
    changed[:, k] += 1.0
    after = model.backbone(changed, order, condition, 0)
    assert torch.equal(before[:, : k + 1], after[:, : k + 1])
    assert not torch.equal(before[:, k + 1 :], after[:, k + 1 :])


def test_teacher_forcing_equals_step_by_step_with_and_without_cache(causal):
    model, tokens, order, condition = causal
    forced = model.backbone(tokens, order, condition, 0)
    cache = model.backbone.new_cache(3, like=condition)
    for k in range(16):
        for kept in (None, cache):
            z = model.backbone.predict(tokens[:, :k], order, condition, num_wanted=1, cache=kept)
            assert (z[:, 0] - forced[:, k]).abs().max() <= 1e-5 * forced.abs().max()
    assert all(layer.length == 16 for layer in cache)


def test_a_cache_filled_by_several_tokens_at_once_is_causal_too(causal):
    model, tokens, order, condition = causal
    cache = model.backbone.new_cache(3, like=condition)
    z = model.backbone.predict(tokens[:, :5], order, condition, num_wanted=1, cache=cache)
    assert torch.allclose(z, model.backbone(tokens, order, condition, 0)[:, 5:6], atol=1e-5)
    z = model.backbone.predict(tokens[:, :9], order, condition, num_wanted=1, cache=cache)
    assert torch.allclose(z, model.backbone(tokens, order, condition, 0)[:, 9:10], atol=1e-5)


def test_random_order_tells_the_network_which_place_comes_next(causal):
    model, tokens, order, condition = causal
    other = order.clone()
    other[:, [4, 9]] = other[:, [9, 4]]
    z, z_other = (model.backbone(tokens, o, condition, 0) for o in (order, other))
    assert torch.equal(z[:, :4], z_other[:, :4])
    assert not torch.allclose(z[:, 4], z_other[:, 4])


def test_several_tokens_per_step_are_refused(causal):
    model, tokens, order, condition = causal
    with pytest.raises(ValueError, match="one token per step"):
        model.backbone.predict(tokens[:, :2], order, condition, num_wanted=2, cache=None)
