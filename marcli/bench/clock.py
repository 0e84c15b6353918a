"""Time and memory, measured so that two numbers may be compared.

The device is synchronised around every measurement. The time of an image comes from runs in which nothing stands in the
way, the shares of the parts from one more run in which every part is synchronised on its own.
"""

import gc
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from marcli.runtime.accelerator import synchronise


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, from an idle device to an idle device."""
    synchronise(device)
    start = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - start


class PartClock:
    """Exclusive seconds of named parts, by standing in front of their methods.

    Time of a part that is called from another counts for the inner one only. Use as a context manager around the
    run; `seconds` holds the result.
    """

    def __init__(self, parts: Mapping[str, Sequence[tuple[object, str]]], device: torch.device) -> None:
        """`parts` maps a name to pairs of an object, or a class for all its objects, and the name of its method."""
        self.seconds = dict.fromkeys(parts, 0.0)
        self._parts, self._device = parts, device
        self._stack: list[str] = []
        self._since = 0.0

    def __enter__(self) -> "PartClock":
        self._own: list[tuple[object, str, Callable | None]] = []
        for part, methods in self._parts.items():
            for owner, name in methods:
                self._own.append((owner, name, vars(owner).get(name)))
                setattr(owner, name, self._timed(part, getattr(owner, name)))
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name, own in reversed(self._own):
            if own is None:
                delattr(owner, name)  # the stand-in; the class still has the method
            else:
                setattr(owner, name, own)

    def _timed(self, part: str, method: Callable) -> Callable:
        def stand_in(*args: object, **kwargs: object) -> object:
            self._settle()
            self._stack.append(part)
            try:
                return method(*args, **kwargs)
            finally:
                self._settle()
                self._stack.pop()

        return stand_in

    def _settle(self) -> None:
        """Give the time since the last event to the part on top of the stack."""
        synchronise(self._device)
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now


@dataclass
class Memory:
    """Peak bytes while something ran, and what they count."""

    peak_bytes: int
    counts: str


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Memory]:
    """Measure the peak inside the block: device memory on CUDA, else resident memory of this process."""
    memory = Memory(0, "")
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield memory
        memory.peak_bytes, memory.counts = torch.cuda.max_memory_allocated(device), "allocated on the GPU"
        return
    resettable = forget_resident_peak()
    yield memory
    memory.peak_bytes = resident_peak()
    memory.counts = "resident" if resettable else "resident, since the start of the process"


def forget_resident_peak() -> bool:
    """Reset the kernel's high-water mark; False where that is not possible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def resident_peak() -> int:
    """Largest resident size of this process in bytes."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def bytes_held(*modules: nn.Module) -> dict[int, int]:
    """Bytes of every piece of memory that modules hold, by its address; packed weights, too, and shared ones once."""
    parts = [part for module in modules for part in module.modules()]
    kept = [value for part in parts for value in (*part.parameters(False), *part.buffers(False), *vars(part).values())]
    weights: dict[int, int] = {}
    for tensor in kept:
        if isinstance(tensor, Tensor) and tensor.is_mkldnn:  # oneDNN's layout has no storage
            weights[id(tensor)] = tensor.nbytes
        elif isinstance(tensor, Tensor):
            weights[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return weights
