"""Signals at awkward moments: a command ends with 75 and one sentence, whatever it was doing."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from marcli.errors import StoppedError
from marcli.runtime.stop import StopRequest, hangup_is_ignored, stop_at_once

WHILE_IMPORTING = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Interrupting())
from marcli.cli.app import run
sys.exit(run(["train", "recipes/debug/head_diffusion.yaml", "train.steps=2", "--out", sys.argv[2]]))
"""


@pytest.mark.parametrize("module", ["pydantic", "numpy.linalg", "numpy.random", "torch.nn", "marcli.training.loop"])
def test_a_signal_during_an_import_stops_the_command(module: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WHILE_IMPORTING, module, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 75, done.stderr
    assert done.stderr.splitlines()[-1].startswith("Stopped by SIGTERM")
    assert not (tmp_path / "run" / "weights.safetensors").exists()


WAITS_IN_C = """
import contextlib, ctypes, os, signal, sys
from threading import Timer
from marcli.cli.errors import run_guarded
from marcli.runtime import stop

def command():
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)  # the second time it waits, and no signal wakes it
    Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    Timer(2.0, libc.pthread_mutex_unlock, (mutex,)).start()
    with stop.StopRequest() if sys.argv[1] == "finishes" else contextlib.nullcontext():
        libc.pthread_mutex_lock(mutex)
        print("finished", flush=True)

stop.SECONDS_TO_HEAR = 0.3
sys.exit(run_guarded(command, as_json=False))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a mutex of zeros, unlocked by another thread, is glibc's")
@pytest.mark.parametrize(("does", "code", "printed"), [("waits", 75, ""), ("finishes", 0, "finished\n")])
def test_who_waits_in_c_code_for_others_that_are_gone_ends_all_the_same(does: str, code: int, printed: str) -> None:
    command = [sys.executable, "-c", WAITS_IN_C, does]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (code, printed)
    assert done.stderr.startswith("Stopped by SIGTERM: what was written before is complete") == (does == "waits")


WHILE_TORCH_LOADS = """
import os, signal, sys
from marcli.cli.errors import run_guarded

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "torch.autograd":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGTERM)
            print("loading goes on", flush=True)

def command():
    sys.meta_path.insert(0, Interrupting())
    import torch
    print("loaded", flush=True)
    signal.pause()

sys.exit(run_guarded(command, as_json=False))
"""


def test_nothing_is_raised_while_torch_loads_which_would_abort() -> None:
    command = [sys.executable, "-c", WHILE_TORCH_LOADS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 75 and done.stdout.startswith("loading goes on\n"), done.stderr
    assert done.stderr.startswith("Stopped by SIGTERM")


class LosesWhatIsRaised:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        sum(range(1000))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_code_swallowed_is_remembered() -> None:
    with stop_at_once(when_deaf=print):
        before = StopRequest()
        del_me = LosesWhatIsRaised()
        del del_me
        with StopRequest() as stop:
            assert stop.requested and stop.signal_name == "SIGTERM"
    assert not StopRequest().requested and not before.requested


def test_an_error_after_a_swallowed_signal_is_its_aftermath() -> None:
    with pytest.raises(StoppedError, match="SIGINT"), stop_at_once(when_deaf=print):
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGINT)
            sum(range(1000))
        raise RecursionError("maximum recursion depth exceeded")


def test_no_library_takes_it_for_an_error_of_its_own() -> None:
    with pytest.raises(StoppedError, match="SIGUSR1"), stop_at_once(when_deaf=print):
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
            sum(range(1000))
        except Exception:
            pytest.fail("swallowed")


WRITES_AFTER_THE_HANGUP = """
import signal, sys, time
from marcli.runtime.stop import StopRequest

signal.signal(signal.SIGHUP, signal.SIG_DFL)
with StopRequest() as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("saving", flush=True)
    print("saving", file=sys.stderr, flush=True)
sys.exit(75 if stop.signal_name == "SIGHUP" else 1)
"""


IN_A_TERMINAL_THAT_CLOSES = """
import os, pty, sys

child, terminal = pty.fork()
if child == 0:
    os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
assert os.read(terminal, 100).startswith(b"ready")
os.close(terminal)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_closed_terminal_asks_to_stop_and_is_not_written_to() -> None:
    command = [sys.executable, "-c", IN_A_TERMINAL_THAT_CLOSES, WRITES_AFTER_THE_HANGUP]
    assert subprocess.run(command, timeout=60, check=False).returncode == 75


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_at_once(when_deaf=print), StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested and hangup_is_ignored()
    finally:
        signal.signal(signal.SIGHUP, before)
