"""With several threads too a gradient has the same bits every time, or a resumed training would not be the same one."""

import pytest
import torch

from tests.model.tiny import COMBINATIONS, draws, latents, model, recipe

BATCH = 192  # enough for PyTorch to share a position table's gradient between threads
REPEATS = 5


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("combination", COMBINATIONS, ids=str)
def test_gradients_have_the_same_bits_every_time(combination):
    of = recipe(*combination)
    trained = model(of)
    given = latents(of, BATCH), torch.arange(BATCH) % 10, draws(trained, BATCH, 0)
    repeats = []
    for _ in range(REPEATS):
        trained.zero_grad()
        trained(*given, 0).mean().backward()
        repeats.append({name: value.grad for name, value in trained.named_parameters() if value.grad is not None})
    first, *others = repeats
    changed = {name for other in others for name, gradient in other.items() if not torch.equal(gradient, first[name])}
    assert first and not changed
