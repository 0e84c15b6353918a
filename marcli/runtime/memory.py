"""Memory that the C library keeps between training steps.

glibc asks the system for every large array and gives it back when it is freed, so each step on a CPU pays again for
having the same pages zeroed: a quarter of a bf16 training step of MAR-B. Kept, they cost nothing, and the peak is the
same.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let freed memory stay in this process for the next array; False where there is no glibc to tell."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, NEVER)) and bool(mallopt(M_MMAP_MAX, 0))


def release_freed_memory() -> None:
    """Give freed memory back to the system now, so that what follows does not inherit an earlier peak."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
