"""Work done ahead of its use, in threads; how many there are changes the speed and nothing else."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, most: int | None = None
) -> Iterator[Result]:
    """Yield `function` of each item, in order, up to `most` (None: two per thread) ahead; 0 threads compute when asked.

    An error reaches the reader in the place of its result. Threads end with the iterator.
    """
    if threads == 0:
        yield from map(function, items)
        return
    remaining = iter(items)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="marcli-ahead")
    try:
        pending = deque(pool.submit(function, item) for item in islice(remaining, most or 2 * threads))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(remaining, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
