"""Stopping on request: TERM, INT, USR1 and HUP ask, the command finishes its step, saves, and ends with exit code 75.

HUP is a closed terminal; under `nohup` it is ignored, as asked.
"""

import contextlib
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from marcli.errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
SECONDS_TO_HEAR = 10.0  # of a signal; in C code, which may wait for other processes, Python's handlers do not run
SECONDS_TO_LOAD = 0.1  # until a signal that came while torch is imported is sent again
_arrived: list[str] = []  # signals that `stop_at_once` raised for, should a library lose what was raised


class StopRequest:
    """Context manager that turns these signals into `requested`; leaving it restores the old handlers.

    Further signals change nothing, since a launcher and a terminal may both deliver the same one.
    Only the main thread of a process can install handlers.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = _arrived[0] if _arrived else None

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop; with several processes, see `Processes.any`."""
        return self.signal_name is not None

    def __enter__(self) -> "StopRequest":
        self._previous = handle_with(self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        restore(self._previous)

    def _remember(self, signal_name: str) -> None:
        self.signal_name = self.signal_name or signal_name


@contextmanager
def stop_at_once(when_deaf: Callable[[StoppedError], None]) -> Iterator[None]:
    """Raise StoppedError wherever a signal arrives, outside a StopRequest: nothing half-done is worth finishing there.

    Where it is not over ten seconds later, `when_deaf` is called in a thread, to say so and end the process.

    Whatever commands write is complete or absent, so there is nothing to save. Code that an exception cannot leave (a
    destructor, a callback from C) swallows it: then a later StopRequest is asked to stop at once, and any error after
    the signal counts as its result, such as that of an import cut short. Does nothing in other threads.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = handle_with(_stop_now)
    try:
        with _watched(when_deaf):
            yield
    except Exception as error:
        if _arrived:
            raise stopped_by(_arrived[0]) from error
        raise
    finally:
        restore(previous)
        _arrived.clear()


@contextmanager
def _watched(when_deaf: Callable[[StoppedError], None]) -> Iterator[None]:
    """Let a thread learn of the signals that the handlers installed now are for, whatever the main thread is doing."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
    arriving, here = os.pipe()
    os.set_blocking(here, False)
    before = signal.set_wakeup_fd(here, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(arriving, handlers, when_deaf), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(here)


def _watch(arriving: int, handlers: dict[signal.Signals, object], when_deaf: Callable[[StoppedError], None]) -> None:
    """Call `when_deaf` for a signal whose handler was and still is one of `handlers`; end with the pipe."""

    def is_ours(number: int) -> bool:
        return number in handlers and signal.getsignal(number) is handlers[number]

    with open(arriving, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            if is_ours(number[0]):
                time.sleep(SECONDS_TO_HEAR)
                if is_ours(number[0]):
                    when_deaf(stopped_by(signal.Signals(number[0]).name))


def hangup_is_ignored() -> bool:
    """Whether `nohup` started this process, or the like."""
    return signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def handle_with(stop: Callable[[str], None]) -> dict[signal.Signals, object]:
    """Have signals that ask to stop call `stop` with their name; return the handlers before it, for `restore`."""

    def arrived(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            leave_terminal()
        stop(signal.Signals(number).name)

    asking = [number for number in SIGNALS if number != signal.SIGHUP or not hangup_is_ignored()]
    return {number: signal.signal(number, arrived) for number in asking}


def restore(handlers: dict[signal.Signals, object]) -> None:
    """Install handlers that `handle_with` replaced."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


def leave_terminal() -> None:
    """Discard what goes to a terminal from now on: it is gone, and writing to it would fail while work is saved."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        with contextlib.suppress(OSError):  # closed already
            if stat.S_ISCHR(os.fstat(number).st_mode):  # no isatty: a terminal that is gone is none any more
                os.dup2(nowhere, number)
    os.close(nowhere)


def _stop_now(signal_name: str) -> None:
    if _torch_is_loading():  # parts of it are C++ code that aborts when anything is raised
        again = threading.Timer(SECONDS_TO_LOAD, os.kill, (os.getpid(), signal.Signals[signal_name]))
        again.daemon = True
        again.start()
        return
    _arrived.append(signal_name)
    raise stopped_by(_arrived[0])


def _torch_is_loading() -> bool:
    return getattr(getattr(sys.modules.get("torch"), "__spec__", None), "_initializing", False)


def stopped_by(signal_name: str) -> StoppedError:
    """The end of a command that was asked to stop where there was nothing to finish."""
    return StoppedError(f"Stopped by {signal_name}: what was written before is complete; give the same command again")
