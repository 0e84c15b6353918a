"""Seeds to images: picture i of seed s is the same on any number of processes, and up to rounding at any batch size.

Pictures are generated in micro-batches that are fixed by their index; a process takes whole ones. Each picture's order
and noise come from its own generator, so a neighbour never changes it.
"""

import logging
import sys
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


def micro_batches(num: int, batch_size: int) -> list[range]:
    """The indices of `num` pictures, batch by batch; the last one may be cut."""
    return [range(start, min(start + batch_size, num)) for start in range(0, num, batch_size)]


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
    maker = Maker(engine, tokenizer, on_step)
    with ThreadPoolExecutor(1, thread_name_prefix="marcli-tape") as drawer:
        for indices, tape in one_ahead(drawer, partial(engine.draw_tape, seed=seed), batches):
            labels = [class_of(index, classes) for index in indices]
            there = torch.tensor(labels, device=engine.device)
            yield Pictures(list(indices), labels, maker.images(there, tape.to(engine.device)))


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


class Maker:
    """Makes and decodes batches in parts that fit the device's memory: whole ones, until one does not fit."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, on_step: OnStep | None) -> None:
        self.engine, self.tokenizer, self.on_step = engine, tokenizer, on_step
        self.most = sys.maxsize  # pictures in one part

    @torch.inference_mode()
    def images(self, labels: Int[Tensor, " batch"], tape: Tape) -> UInt8[Tensor, "batch channels height width"]:
        """Decoded pictures on the CPU; raises torch.OutOfMemoryError when not even one fits."""
        parts: list[Tensor] = []
        start = 0
        while start < len(labels):
            part = slice(start, min(start + self.most, len(labels)))
            try:
                parts.append(self.decoded(labels[part], Tape(tape.order[part], tape.noise[part])))
            except torch.OutOfMemoryError:
                size = part.stop - part.start
                if size == 1:
                    raise
                self.most = -(-size // 2)
                log.warning(f"{size} pictures do not fit the memory of {self.engine.device}: from now on {self.most}")
            else:
                start = part.stop
        return torch.cat(parts)

    def decoded(self, labels: Tensor, tape: Tape) -> Tensor:
        """Pictures of one part, on the CPU."""
        latents = self.engine.latents(labels=labels, tape=tape, on_step=self.on_step)
        return torch.cat([self.tokenizer.decode(part) for part in latents.split(DECODED_AT_ONCE)]).cpu()
