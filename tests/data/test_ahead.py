"""Results come in order, from any number of threads, a bounded number ahead."""

import itertools
import threading

import pytest

from marcli.data.ahead import ahead


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
