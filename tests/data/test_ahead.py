"""Results come in order, from any number of threads, a bounded number ahead."""

import itertools
import threading
from types import SimpleNamespace

import pytest

from marcli.data.ahead import ahead
from marcli.data.cache_writer import decode_shards


@pytest.mark.parametrize(("threads", "most", "bound"), [(0, None, 0), (1, None, 2), (3, None, 6), (2, 7, 7)])
def test_results_come_in_order_and_a_bounded_number_ahead(threads, most, bound) -> None:
    taken = itertools.count()
    results = ahead(lambda item: item * item, (next(taken) for _ in range(20)), threads=threads, most=most)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert next(taken) == 5 + bound
    results.close()


def test_threads_work_while_the_reader_does_and_end_with_it() -> None:
    both = threading.Barrier(2, timeout=10)  # passed only when two items are worked on at once
    results = ahead(lambda item: both.wait() * 0 + item, range(4), threads=2)
    assert list(results) == [0, 1, 2, 3]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("marcli-ahead")]


def test_an_error_takes_the_place_of_its_result() -> None:
    results = ahead(lambda item: 6 // item, [3, 0, 2], threads=2)
    assert next(results) == 2
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_one_shard_of_pictures_is_decoded_ahead_and_no_more() -> None:
    taken, images = [], SimpleNamespace(square=lambda index: index)
    plan = SimpleNamespace(shard_range=lambda shard: taken.append(shard) or range(3 * shard, 3 * shard + 3))
    for shard, squares in decode_shards(images, plan, range(5), threads=2):
        assert squares == [3 * shard, 3 * shard + 1, 3 * shard + 2]
        assert taken == list(range(min(shard + 2, 5)))
    assert shard == 4
