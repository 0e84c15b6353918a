"""Contestants of a benchmark take turns, each in a process of its own.

What one asks of the memory allocator must not help another, and each starts as its own command would start it.
"""

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any


@contextlib.contextmanager
def started(prepare: Callable[..., Callable[..., Any]], *arguments: object) -> Iterator[Callable[..., Any]]:
    """A function that lets the contestant take a turn, with arguments, and returns what comes of it.

    `prepare(*arguments)`, run in the new process, gives the function that takes a turn there.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=take_turns, args=(there, prepare, arguments), daemon=True)
    process.start()
    there.close()

    def turn(*given: object) -> Any:
        try:
            here.send(given)
            return here.recv()
        except (EOFError, BrokenPipeError):
            raise SystemExit("A contestant failed, as said above.") from None

    try:
        yield turn
    finally:
        with contextlib.suppress(BrokenPipeError):  # a contestant that failed has said why and is gone
            here.send(None)
        process.join()


def take_turns(connection: Connection, prepare: Callable[..., Callable[..., Any]], arguments: tuple) -> None:
    """Take a turn for the arguments in every message but the last."""
    turn = prepare(*arguments)
    while (given := connection.recv()) is not None:
        connection.send(turn(*given))
