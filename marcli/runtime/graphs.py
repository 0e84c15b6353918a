"""CUDA graphs: a function of tensors is recorded once per combination of shapes, then replayed without the host.

A combination is recorded when it comes again: the memory that a call takes by itself is given back before the
recordings take theirs, and what comes once is not worth it. Where recording fails or memory runs short, the function
itself is called, and one line says why.
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

MEMORY_KEPT_FREE = 0.1  # of the device; no more recordings below it

log = logging.getLogger("marcli")

Replay = Callable[[], None]
Capture = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]


class CudaGraphs:
    """Captures CUDA graphs that share one pool of memory."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        """Record `function`, called before; return what replays it, and the tensor in which its result then lies."""
        torch.cuda.empty_cache()  # what is only kept back counts as free
        free, total = torch.cuda.mem_get_info()
        if free < MEMORY_KEPT_FREE * total:
            raise MemoryError(f"only {free / 2**30:.1f} GiB of GPU memory are free")
        graph = torch.cuda.CUDAGraph()
        # Other threads (of a data loader, say) may go on using the device meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            result = function()
        return graph.replay, result


@dataclass(frozen=True)
class Recording:
    """Where a recorded function reads, how it is run, and where its result lies."""

    inputs: list[Tensor]
    replay: Replay
    result: Tensor


class Recorded:
    """`function(tensors, setting)` through recordings, one for each setting and combination of shapes."""

    def __init__(self, function: Callable[..., Tensor], capture: Capture) -> None:
        self.function, self.capture = function, capture
        self.recordings: dict[Hashable, Recording] = {}
        self.seen: set[Hashable] = set()
        self.gave_up = False

    def __call__(self, tensors: Sequence[Tensor], setting: Hashable) -> Tensor:
        key = (setting, *((tensor.shape, tensor.dtype) for tensor in tensors))
        if key in self.seen:
            self.record(key, tensors, setting)
        if key not in self.recordings:
            self.seen.add(key)
            return self.function(tensors, setting)  # first without a recording: it also compiles, and makes its tables
        recording = self.recordings[key]
        for place, tensor in zip(recording.inputs, tensors, strict=True):
            place.copy_(tensor)
        recording.replay()
        return recording.result.clone()  # the next replay writes over it

    def give_up(self) -> None:
        """Forget all recordings and make no more."""
        self.gave_up = True
        self.recordings.clear()
        torch.cuda.empty_cache()

    def record(self, key: Hashable, tensors: Sequence[Tensor], setting: Hashable) -> None:
        """Add a recording where there is none; after the first failure no other is tried."""
        if key in self.recordings or self.gave_up:
            return
        inputs = [tensor.clone() for tensor in tensors]
        try:
            replay, result = self.capture(partial(self.function, inputs, setting))
        except (RuntimeError, MemoryError) as error:
            self.gave_up = True
            log.warning(f"going on without further CUDA graphs: {str(error).splitlines()[0]}")
            return
        self.recordings[key] = Recording(inputs, replay, result)
