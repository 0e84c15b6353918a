"""How far latents spread: what their scale is measured by, and what a report on a tokenizer says of them."""

import torch
from jaxtyping import Float
from torch import Tensor


class LatentMoments:
    """Running mean and variance of latents, in all and per channel."""

    def __init__(self, channels: int) -> None:
        self._count = 0
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)

    def add(self, latents: Float[Tensor, "batch c s s"]) -> None:
        """Take in a batch."""
        values = latents.double().cpu()
        self._count += values.numel() // values.shape[1]
        self._sum += values.sum((0, 2, 3))
        self._squares += values.square().sum((0, 2, 3))

    @property
    def std(self) -> float:
        """Standard deviation over everything, around the common mean."""
        mean, square = self._sum.mean() / self._count, self._squares.mean() / self._count
        return float((square - mean**2).clamp(min=0).sqrt())

    @property
    def channel_range(self) -> tuple[float, float]:
        """Smallest and largest standard deviation of a channel."""
        stds = (self._squares / self._count - (self._sum / self._count) ** 2).clamp(min=0).sqrt()
        return float(stds.min()), float(stds.max())
