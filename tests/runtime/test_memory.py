"""Freed memory stays in the process, and can be given back."""

import subprocess
import sys

import pytest

PAGES_OF_TEN_ARRAYS = """
import resource, sys
import torch
from marcli.runtime.memory import keep_freed_memory, release_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
assert keep_freed_memory()
faults()  # the heap grows a few times first
kept = faults()
release_freed_memory()
print(given_back, kept, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks glibc")
def test_the_same_pages_are_used_again():
    done = subprocess.run(
        [sys.executable, "-c", PAGES_OF_TEN_ARRAYS], capture_output=True, text=True, timeout=240, check=True
    )
    given_back, kept, after_release = map(int, done.stdout.split())
    one_array = 10_000_000 * 4 // 4096
    assert given_back > 9 * one_array
    assert kept < one_array / 2
    assert after_release > one_array / 2
