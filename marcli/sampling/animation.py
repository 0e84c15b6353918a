"""The order of generation, animated: what is known after each AR step, unknown places grey."""

from pathlib import Path

import torch
from jaxtyping import Int, Shaped
from PIL import Image
from torch import Tensor

from marcli.model.grid import to_latents
from marcli.model.layers.embed import take
from marcli.runtime.atomic import atomic_file
from marcli.sampling.album import grid_image
from marcli.sampling.schedule import RevealStep
from marcli.sampling.system import System

PICTURES = 16
SECONDS = 4.0
HOLD_SECONDS = 1.5
GREY = 128


class Animation:
    """Collects one frame per AR step of the first batch and writes them as a GIF."""

    def __init__(self, system: System, path: Path) -> None:
        self.tokenizer = system.tokenizer
        self.patch_size = system.recipe.model.patch_size
        self.path = path
        self.frames: list[Image.Image] = []
        self.complete = False

    def watch(
        self, step: RevealStep, known: Shaped[Tensor, "batch known dim"], order: Int[Tensor, "batch tokens"]
    ) -> None:
        """Decode what is known after a step of the first batch; hand this to `generate` as `on_step`."""
        if self.complete:
            return
        if step.index == 0:
            self.frames.clear()  # of a batch that did not fit the memory
        self.complete = known.shape[1] == order.shape[1]
        known, order = known[:PICTURES], order[:PICTURES]
        batch, num_known, dim = known.shape
        hidden = known.new_zeros(batch, order.shape[1] - num_known, dim)
        shown = torch.ones(batch, order.shape[1], 1, device=known.device)
        shown[:, num_known:] = 0
        places = order.argsort(dim=1)
        images = self.tokenizer.decode(to_latents(take(torch.cat([known, hidden], dim=1), places), self.patch_size))
        side = round(order.shape[1] ** 0.5)
        mask = take(shown, places).view(batch, 1, side, side)
        mask = torch.nn.functional.interpolate(mask, size=images.shape[-2:], mode="nearest") > 0
        images = torch.where(mask, images, torch.full_like(images, GREY))
        self.frames.append(grid_image(images.cpu(), columns=max(1, round(batch**0.5))))

    def write(self) -> None:
        """Write the GIF; a model without AR steps has no frames and writes nothing."""
        if not self.frames:
            return
        pace = max(20, int(1000 * SECONDS / len(self.frames)))
        durations = [pace] * (len(self.frames) - 1) + [int(1000 * HOLD_SECONDS)]
        with atomic_file(self.path) as partial:
            first, *rest = self.frames
            first.save(partial, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0)
