"""Batches of training: images or latents, labels and every random number, ahead of the device.

All of it is a function of (seed, step, slot in the global batch). A process takes its share of the slots, so what is
trained on depends neither on the number of processes nor on where a run was resumed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from marcli.data.ahead import ahead
from marcli.data.batches import batch_flips, batch_indices
from marcli.data.source import Source
from marcli.recipe.schema import Recipe
from marcli.runtime.seeding import item_generator
from marcli.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class Batch:
    """One process's share of a step, in main memory."""

    step: int
    indices: np.ndarray
    images: Tensor  # uint8 images, or rows of the latent cache
    labels: Tensor
    noise: Tensor | None  # of the tokenizer's posterior
    draws: dict[str, Tensor]
    num_known: int

    def split(self, size: int) -> Iterator["Batch"]:
        """Cut into parts of at most `size` images."""
        for start in range(0, len(self.labels), size):
            part = slice(start, start + size)
            yield Batch(
                step=self.step,
                indices=self.indices[part],
                images=self.images[part],
                labels=self.labels[part],
                noise=None if self.noise is None else self.noise[part],
                draws={name: value[part] for name, value in self.draws.items()},
                num_known=self.num_known,
            )


class Feed:
    """Makes the batches of process `rank` of `world_size`."""

    def __init__(
        self, recipe: Recipe, *, source: Source, tokenizer: Tokenizer, model: nn.Module, rank: int, world_size: int
    ):
        self.recipe, self.source, self.tokenizer, self.model = recipe, source, tokenizer, model
        share = recipe.train.batch_size // world_size
        self.slots = range(rank * share, (rank + 1) * share)

    def indices(self, step: int) -> np.ndarray:
        """Return the images of the whole global batch of `step`."""
        train = self.recipe.train
        return batch_indices(num_images=self.source.num_images, batch_size=train.batch_size, seed=train.seed, step=step)

    def batch(self, step: int) -> Batch:
        """Return this process's share of `step`."""
        train, own = self.recipe.train, slice(self.slots.start, self.slots.stop)
        indices = self.indices(step)[own]
        flips = batch_flips(
            batch_size=train.batch_size,
            seed=train.seed,
            step=step,
            horizontal_flip=self.recipe.data.horizontal_flip,
        )
        images, labels = self.source.fetch(indices, flips[own])
        num_known = self.model.num_known(item_generator("train", train.seed, step))
        noise, draws = [], []
        shape = self.tokenizer.shape
        for slot in self.slots:
            generator = item_generator("train", train.seed, step, slot)
            draws.append(self.model.draw(generator, num_known))
            if self.tokenizer.has_posterior:
                noise.append(torch.randn(shape.channels, shape.size, shape.size, generator=generator))
        return Batch(
            step=step,
            indices=indices,
            images=images,
            labels=labels,
            noise=torch.stack(noise) if noise else None,
            draws={name: torch.stack([draw[name] for draw in draws]) for name in draws[0]},
            num_known=num_known,
        )

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """Yield the batches of steps `first`..`last` - 1, made ahead in `data.workers` threads, or here if it is 0."""
        yield from ahead(self.batch, range(first, last), threads=self.recipe.data.workers)
