"""Seeds to images: picture i of seed s is the same on any number of processes and at any batch size.

Pictures are generated in micro-batches that are fixed by their index; a process takes whole ones. Each
picture's order and noise come from its own generator, so a neighbour never changes it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from marcli.sampling.engine.base import Engine
from marcli.sampling.reveal import OnStep
from marcli.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class Pictures:
    """Generated images with their indices and classes."""

    indices: list[int]
    labels: list[int]
    images: UInt8[Tensor, "batch channels height width"]


def micro_batches(*, start: int, stop: int, batch_size: int, rank: int, world_size: int) -> list[range]:
    """Index ranges of the micro-batches that `rank` of `world_size` generates.

    Batch b holds the indices b * batch_size onwards whatever `start` is; the first and last may be cut.
    """
    first, last = start // batch_size, -(-stop // batch_size)
    batches = [range(max(start, b * batch_size), min(stop, (b + 1) * batch_size)) for b in range(first, last)]
    return batches[rank::world_size]


def class_of(index: int, classes: Sequence[int]) -> int:
    """Class of picture `index`: the classes given take turns."""
    return classes[index % len(classes)]


def generate(
    engine: Engine,
    tokenizer: Tokenizer,
    *,
    classes: Sequence[int],
    seed: int,
    batches: Iterable[Sequence[int]],
    on_step: OnStep | None = None,
) -> Iterator[Pictures]:
    """Yield the pictures of each batch of indices, decoded on the engine's device, on the CPU."""
    for indices in batches:
        labels = [class_of(index, classes) for index in indices]
        tape = engine.draw_tape(seed=seed, indices=indices).to(engine.device)
        latents = engine.latents(labels=torch.tensor(labels, device=engine.device), tape=tape, on_step=on_step)
        with torch.inference_mode():
            images = tokenizer.decode(latents)
        yield Pictures(list(indices), labels, images.cpu())
