"""Where a training step's images come from: pictures decoded on the fly, or a cache of latents.

A source answers (which images, which of them mirrored) with what the tokenizer needs: pictures for `encode`, cached
rows for `sample`. Prefetching keeps the order of the requests, so threads change the speed and nothing else.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from marcli.data.images import ImageSet


class Request(NamedTuple):
    """Which images to fetch: `indices` int64 [b], and which of them mirrored: `flips` bool [b]."""

    indices: np.ndarray
    flips: np.ndarray


class Batch(NamedTuple):
    """What a source answered, with the request it belongs to."""

    request: Request
    payload: Tensor  # uint8 images [b, c, s, s], or cached rows [b, r, s, s]
    labels: Int64[Tensor, " batch"]


class Source(Protocol):
    """Labelled training examples by index."""

    num_images: int
    labels: np.ndarray  # int64 [num_images]
    is_latents: bool  # payloads are cached rows for `Tokenizer.sample`, not images for `Tokenizer.encode`
    fingerprint: str

    def fetch(self, indices: np.ndarray, flips: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return payload and int64 labels of `indices`, mirrored where `flips`; safe to call from threads."""


class ImageSource:
    """Pictures, decoded when asked for."""

    is_latents = False

    def __init__(self, images: ImageSet) -> None:
        self.images = images
        self.num_images = len(images)
        self.labels = images.labels
        self.fingerprint = images.fingerprint

    def fetch(self, indices: np.ndarray, flips: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return uint8 images [b, c, s, s], mirrored left to right where `flips`, and labels."""
        pixels, labels = self.images.fetch(indices)
        if flips.any():
            mirrored = torch.from_numpy(flips)
            pixels[mirrored] = pixels[mirrored].flip(-1)
        return pixels, labels


def prefetch(source: Source, requests: Iterable[Request], *, threads: int) -> Iterator[Batch]:
    """Yield a batch per request, in order, fetching up to two per thread ahead; 0 threads fetch when asked."""

    def answer(request: Request) -> Batch:
        return Batch(request, *source.fetch(request.indices, request.flips))

    if threads == 0:
        yield from map(answer, requests)
        return
    remaining = iter(requests)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="marcli-fetch")
    try:
        ahead: deque[Future[Batch]] = deque(pool.submit(answer, request) for request in islice(remaining, 2 * threads))
        while ahead:
            batch = ahead.popleft().result()
            ahead.extend(pool.submit(answer, request) for request in islice(remaining, 1))
            yield batch
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
