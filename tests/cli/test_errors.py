"""One sentence and one exit code for every failure."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from marcli.cli.errors import explain_error, run_guarded
from marcli.errors import MarcliError, StoppedError, UsageError
from marcli.runtime.stop import StopRequest


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MarcliError("It broke: mend it."), 1, "It broke: mend it."),
        (UsageError("Wrong key."), 2, "Wrong key."),
        (StoppedError("Stopped at step 3."), 75, "Stopped at step 3."),
        (OSError(errno.ENOSPC, "No space left on device", "/x/model"), 1, "The disk is full at /x/model: make room"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "The disk is full: make room"),
        (FileExistsError(errno.EEXIST, "File exists", "/x/eval"), 1, "/x/eval exists already where a folder"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "No permission for /x"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/y"), 1, "There is no /y: check the path"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), 1, "the network did not answer"),
        (socket.gaierror(-3, "Temporary failure in name resolution"), 1, "the network did not answer"),
        (RuntimeError("I/O: No space left on device (os error 28)"), 1, "The disk is full: make room"),
        (KeyboardInterrupt(), 1, "Interrupted"),
        (MemoryError(), 1, "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 1, "not enough memory"),
        (ValueError("bad\nsecond line"), 1, "ValueError: bad (unexpected; MARCLI_TRACEBACK=1 shows where)"),
    ],
)
def test_sentence_and_code(error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise error

    assert run_guarded(fail, as_json=True) == code
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1 and "Traceback" not in captured.err
    assert captured.err.startswith("Stopped" if code == 75 else "error: ")
    assert json.loads(captured.out) == {"error": explain_error(error)[0], "exit_code": code}


def test_cause_counts_and_brackets_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/x/[bold]")
        except OSError as error:
            raise RuntimeError("while saving") from error

    assert run_guarded(fail, as_json=False) == 1
    captured = capsys.readouterr()
    assert "The disk is full at /x/[bold]" in captured.err and captured.out == ""


@pytest.mark.parametrize(
    ("launcher", "local_rank", "says"),
    [("torchrun", 0, True), ("torchrun", 3, True), ("srun", 0, True), ("srun", 3, False)],
)
def test_wrong_usage_of_one_process_is_said_after_the_first_had_time_to(
    launcher, local_rank, says, monkeypatch, capsys
) -> None:
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for name, value in {"RANK": "11", "LOCAL_RANK": str(local_rank)}.items():
        monkeypatch.setenv(name, value)
    if launcher == "torchrun":
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")

    def fail() -> None:
        raise UsageError("wrong key")

    assert run_guarded(fail, as_json=False) == 2
    assert slept == [5.0 + local_rank]
    assert capsys.readouterr() == ("", "error: Process 11: wrong key\n" if says else "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_outside_training_ends_with_75(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    assert run_guarded(lambda: os.kill(os.getpid(), number) or time.sleep(5), as_json=False) == 75
    assert capsys.readouterr().err.startswith(f"Stopped by {number.name}: what was written before is complete")
    assert signal.getsignal(number) == before


def test_a_stop_request_lets_the_command_finish() -> None:
    def command() -> int:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested and stop.signal_name == "SIGUSR1"
        return 3

    assert run_guarded(command, as_json=False) == 3


@pytest.mark.parametrize("where", ["closed pipe", "full disk"])
def test_output_that_nobody_takes_changes_neither_sentence_nor_code(where: str) -> None:
    if where == "full disk" and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    reader, writer = os.pipe() if where == "closed pipe" else (None, os.open("/dev/full", os.O_WRONLY))
    if reader is not None:
        os.close(reader)
    command = [sys.executable, "-m", "marcli", "train", "no-such-recipe", "--json"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == 2
    assert done.stderr.startswith("error: There is no recipe file") and done.stderr.count("\n") == 1


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MARCLI_TRACEBACK", "1")

    def fail() -> None:
        raise ValueError("bad")

    run_guarded(fail, as_json=False)
    assert "Traceback" in capsys.readouterr().err
