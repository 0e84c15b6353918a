"""All randomness of a picture, drawn from its seed and index alone, before anything is computed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from marcli.model.autoregressive import AutoregressiveModel
from marcli.model.head.base import HeadSampling
from marcli.runtime.seeding import item_generator


@dataclass(frozen=True)
class Tape:
    """Orders and noise of a batch; noise row k belongs to the k-th revealed token."""

    order: Int[Tensor, "batch tokens"]
    noise: Float[Tensor, "batch tokens draws dim"]

    def to(self, device: torch.device) -> "Tape":
        """The tape on `device`."""
        return Tape(self.order.to(device, non_blocking=True), self.noise.to(device, non_blocking=True))


def picture_generator(seed: int, index: int) -> Generator:
    """The generator of picture `index` of `seed`."""
    return item_generator("picture", seed, index)


@torch.inference_mode()
def draw_tape(
    model: AutoregressiveModel, *, seed: int, indices: Sequence[int], num_steps: int, settings: HeadSampling
) -> Tape:
    """Draw each picture's order and noise on the CPU."""
    orders, noises = [], []
    for index in indices:
        generator = picture_generator(seed, index)
        orders.append(model.draw_order(generator))
        noises.append(model.head.noise(generator, model.num_tokens, num_steps, settings))
    return Tape(torch.stack(orders), torch.stack(noises))
