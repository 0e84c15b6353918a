"""Exponential moving average of the weights: float32, one foreach routine per step.

In bfloat16 an average with decay 0.9999 would never move: its step is smaller than the format's spacing.
"""

import torch
from torch import Tensor, nn


class Ema:
    """The averaged weights of `model`, starting as a copy of it; decay is constant from the first step."""

    def __init__(self, model: nn.Module, *, decay: float):
        self.decay = decay
        self.names = [name for name, _ in model.named_parameters()]
        self.parameters = [parameter for _, parameter in model.named_parameters()]
        self.averages = [parameter.detach().float().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """average = decay * average + (1 - decay) * weights."""
        torch._foreach_lerp_(self.averages, self.parameters, 1 - self.decay)

    def state(self) -> dict[str, Tensor]:
        """Return the averages by parameter name."""
        return dict(zip(self.names, self.averages, strict=True))

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Set the averages; names and shapes must be those of the model."""
        for name, average in zip(self.names, self.averages, strict=True):
            average.copy_(state[name])
