"""Stopping on request: TERM, INT and USR1 ask, the command finishes its step, saves, and ends with exit code 75."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from marcli.errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_arrived: list[str] = []  # signals that `stop_at_once` raised for, should a library lose what was raised


class StopRequest:
    """Context manager that turns the three signals into `requested`; leaving it restores the old handlers.

    Further signals change nothing, since a launcher and a terminal may both deliver the same one.
    Only the main thread of a process can install handlers.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = _arrived[0] if _arrived else None
        self._previous: dict[signal.Signals, object] = {}

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop; with several processes, see `Processes.any`."""
        return self.signal_name is not None

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = self.signal_name or signal.Signals(number).name


@contextmanager
def stop_at_once() -> Iterator[None]:
    """Raise StoppedError wherever a signal arrives, outside a StopRequest: nothing half-done is worth finishing there.

    Whatever commands write is complete or absent, so there is nothing to save. Code that an exception cannot leave (a
    destructor, a callback from C) loses it: then a later StopRequest finds itself asked to stop, and any error counts
    as the aftermath, such as that of an import cut short. Does nothing in other threads.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, _stop_now) for number in SIGNALS}
    try:
        yield
    except Exception as error:
        if _arrived:
            raise _stopped() from error
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _arrived.clear()


def _stop_now(number: int, frame: FrameType | None) -> None:
    _arrived.append(signal.Signals(number).name)
    raise _stopped()


def _stopped() -> StoppedError:
    return StoppedError(f"Stopped by {_arrived[0]}: what was written before is complete; give the same command again")
