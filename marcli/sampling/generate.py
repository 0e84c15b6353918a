"""Seeds to images: picture i of seed s is the same on any number of processes and at any batch size.

Pictures are generated in micro-batches that are fixed by their index; a process takes whole ones. Each
picture's order and noise come from its own generator, so a neighbour never changes it.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from marcli.sampling.engine.base import Engine
from marcli.sampling.reveal import OnStep
from marcli.sampling.tape import Tape
from marcli.tokenizer.base import Tokenizer

DECODED_AT_ONCE = 32  # a KL decoder holds about 0.2 GB per picture of 256 px, and more at a time are no faster

log = logging.getLogger("marcli")


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
    with ThreadPoolExecutor(1, thread_name_prefix="marcli-tape") as drawer:
        for indices, tape in one_ahead(drawer, partial(engine.draw_tape, seed=seed), batches):
            labels = [class_of(index, classes) for index in indices]
            there = torch.tensor(labels, device=engine.device)
            images = images_of(engine, tokenizer, there, tape.to(engine.device), on_step)
            yield Pictures(list(indices), labels, images)


def one_ahead(
    drawer: Executor, draw: Callable[..., Tape], batches: Iterable[Sequence[int]]
) -> Iterator[tuple[Sequence[int], Tape]]:
    """Yield every batch with its tape; the next tape is drawn meanwhile (two seconds for 256 pictures of MAR-B)."""
    drawn: tuple[Sequence[int], Future[Tape]] | None = None
    for indices in batches:
        following = (indices, drawer.submit(draw, indices=indices))
        if drawn is not None:
            yield drawn[0], drawn[1].result()
        drawn = following
    if drawn is not None:
        yield drawn[0], drawn[1].result()


@torch.inference_mode()
def images_of(
    engine: Engine, tokenizer: Tokenizer, labels: Int[Tensor, " batch"], tape: Tape, on_step: OnStep | None
) -> UInt8[Tensor, "batch channels height width"]:
    """Decoded pictures on the CPU; a batch that does not fit the device's memory is made in halves."""
    try:
        latents = engine.latents(labels=labels, tape=tape, on_step=on_step)
        return torch.cat([tokenizer.decode(part) for part in latents.split(DECODED_AT_ONCE)]).cpu()
    except torch.OutOfMemoryError:
        if len(labels) == 1:
            raise
    log.warning(f"a batch of {len(labels)} does not fit the memory of {engine.device}: it is made in halves")
    halves = (slice(0, len(labels) // 2), slice(len(labels) // 2, None))
    return torch.cat(
        [
            images_of(engine, tokenizer, labels[half], Tape(tape.order[half], tape.noise[half]), on_step)
            for half in halves
        ]
    )
