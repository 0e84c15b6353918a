"""Pictures to features at the network's own speed.

Reading, decoding and resizing run in threads ahead of the network. Batches are fixed by picture index, so that every
picture is computed among the same neighbours on any number of processes and after any interruption.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from marcli.data.ahead import ahead
from marcli.metrics.features import Extractor

UNIT = 256  # pictures that a process takes at a time
LARGEST_BATCH = 64


@dataclass(frozen=True)
class FeatureBatch:
    """Features of some pictures, and which of these show one single colour."""

    indices: list[int]
    features: Float[np.ndarray, "batch dim"]
    blank: Bool[np.ndarray, " batch"]


def network_batches(indices: Sequence[int]) -> list[list[int]]:
    """Cut a unit of pictures into equal batches of at most 64 (and a rest only where no divisor is near)."""
    count = len(indices)
    size = next((size for size in range(LARGEST_BATCH, 15, -1) if count % size == 0), LARGEST_BATCH)
    return [list(indices[start : start + size]) for start in range(0, count, size)]


def extract_read(
    read: Callable[[Sequence[int]], UInt8[Tensor, "batch channels height width"]],
    batches: Iterable[Sequence[int]],
    extractor: Extractor,
    *,
    workers: int,
) -> Iterator[FeatureBatch]:
    """Yield the features of each batch of indices, in order; `read` runs in `workers` threads, a few batches ahead."""

    def prepare(indices: Sequence[int]) -> tuple[Sequence[int], Tensor, np.ndarray]:
        torch.set_num_threads(1)
        images = read(indices)
        return indices, extractor.input_of(images), blank_pictures(images)

    # A thread's setting becomes that of every thread which asks later, so this one asks before, and restores it.
    threads = torch.get_num_threads()
    try:
        with closing(ahead(prepare, batches, threads=workers)) as stream:
            for indices, prepared, blank in stream:
                yield FeatureBatch([int(index) for index in indices], extractor.features_of(prepared), blank)
    finally:
        torch.set_num_threads(threads)


def extract_images(
    indices: Sequence[int], images: UInt8[Tensor, "batch channels height width"], extractor: Extractor
) -> FeatureBatch:
    """Return the features of pictures that are in memory, in the batches that reading them would give."""
    rows = network_batches(range(len(indices)))
    features = np.concatenate([extractor(images[batch[0] : batch[-1] + 1]) for batch in rows])
    return FeatureBatch([int(index) for index in indices], features, blank_pictures(images))


def blank_pictures(images: UInt8[Tensor, "batch channels height width"]) -> Bool[np.ndarray, " batch"]:
    """Tell which pictures have the same value at every pixel of every channel."""
    corner = images[:, :, :1, :1]
    blank = (images[:, :, :1] == corner).flatten(1).all(dim=1)  # the first row rules out nearly all of them
    blank[blank.clone()] = (images[blank] == corner[blank]).flatten(1).all(dim=1)
    return blank.numpy()
