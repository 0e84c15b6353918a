import torch
from torch import nn

from marcli.training.ema import Ema
from marcli.training.train import warn_of_slow_average


def test_average_is_the_closed_form():
    """After n updates: decay^n w_0 + (1 - decay) sum_k decay^(n - k) w_k."""
    torch.manual_seed(0)
    layer, decay, steps = nn.Linear(3, 2), 0.9, 20
    ema = Ema(layer, decay=decay)
    history = [layer.weight.detach().double().clone()]
    for _ in range(steps):
        with torch.no_grad():
            layer.weight.copy_(torch.randn(2, 3))
        history.append(layer.weight.detach().double().clone())
        ema.update()
    expected = decay**steps * history[0]
    expected += (1 - decay) * sum(decay ** (steps - k) * history[k] for k in range(1, steps + 1))
    torch.testing.assert_close(ema.state()["weight"].double(), expected, rtol=0, atol=1e-6)


def test_average_moves_in_float32_when_the_weights_are_bfloat16():
    layer = nn.Linear(1, 1).to(torch.bfloat16)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    ema = Ema(layer, decay=0.9999)
    with torch.no_grad():
        layer.weight.fill_(2.0)
    for _ in range(1000):
        ema.parameters = [parameter.float() for parameter in layer.parameters()]
        ema.update()
    assert ema.state()["weight"].dtype == torch.float32
    torch.testing.assert_close(ema.state()["weight"].item(), 2 - 0.9999**1000, rtol=0, atol=1e-4)


def test_an_average_too_slow_for_the_run_is_said_beforehand():
    said = []
    warn_of_slow_average(0.9999, 391, said.append)
    assert "still hold 96% of the untrained ones" in said[0] and "train.ema_decay to 0.9744" in said[0]
    warn_of_slow_average(0.9999, 100_000, said.append)
    warn_of_slow_average(0.995, 4000, said.append)
    assert len(said) == 1
    warn_of_slow_average(0.9, 6, said.append)
    assert said[1].endswith("sample with --weights raw.")
