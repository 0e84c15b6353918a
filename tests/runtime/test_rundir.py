"""One writer per run, and a status that survives launchers."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from marcli.errors import MarcliError
from marcli.runtime.rundir import RunDir, newest_run

HOLD = """
import os, sys, time
from marcli.runtime.rundir import RunDir
with RunDir(sys.argv[1]).lock():
    if os.fork() == 0:      # a data worker that outlives its parent must not keep the lock
        time.sleep(60)
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_run_is_refused_and_a_killed_one_is_taken_over(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert owner.stdout.readline() == "held\n"
        with (
            pytest.raises(MarcliError, match=rf"in use by process {owner.pid} on host {socket.gethostname()}"),
            run.lock(),
        ):
            pass
        owner.kill()
        owner.wait()
        deadline = time.monotonic() + 60
        while True:  # on a busy machine the killed one's fork lets go only once it has run at all
            try:
                with run.lock():
                    assert json.loads(run.lock_path.read_text())["pid"] == os.getpid()
                break
            except MarcliError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        with run.lock():
            pass
    finally:
        os.killpg(owner.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("host", "job", "free"), [("elsewhere", None, False), ("elsewhere", "7", True), (None, "8", True)]
)
def test_lock_left_by_another_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host, job, free) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    run = RunDir(tmp_path)
    run.lock_path.write_text(json.dumps({"pid": 1, "host": host or socket.gethostname(), "slurm_job": job}))
    if free:
        with run.lock():
            pass
    else:
        with pytest.raises(MarcliError, match=f"process 1 on host elsewhere.*delete {run.lock_path}"), run.lock():
            pass


@pytest.mark.parametrize("text", [b'{"pid": ', b"\xe9\x9a"])
def test_lock_removes_leftovers_and_survives_a_torn_text(tmp_path: Path, text: bytes) -> None:
    run = RunDir(tmp_path)
    run.lock_path.write_bytes(text)
    run.checkpoints.mkdir()
    (run.checkpoints / ".step-2.partial-9").mkdir()
    with run.lock():
        assert list(run.checkpoints.iterdir()) == []


def test_status_and_newest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert newest_run() is None and RunDir(tmp_path).read_status() is None
    for age, name in ((300, "old"), (100, "new"), (0, "no_recipe")):
        run = RunDir(tmp_path / "runs" / name)
        run.write_status("stopped", step=3)
        run.weights_path.write_bytes(b"")
        os.utime(run.weights_path, (time.time() - age,) * 2)
        if name != "no_recipe":
            run.recipe_path.write_text("")
    assert newest_run().path.name == "new"
    status = run.read_status()
    assert (status["state"], status["step"], status["pid"]) == ("stopped", 3, os.getpid())


@pytest.mark.parametrize("content", [b"", b'{"state": "do', b"[]", b"{}", b"\xff\x00"])
def test_a_damaged_status_counts_as_none(tmp_path: Path, content: bytes) -> None:
    run = RunDir(tmp_path)
    run.status_path.write_bytes(content)
    assert run.read_status() is None


def test_a_disk_without_locks_is_said_and_the_owner_is_still_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    run = RunDir(tmp_path)
    with run.lock():
        assert json.loads(run.lock_path.read_text())["pid"] == os.getpid()
    assert ["no file locks (No locks available)" in line for line in caplog.messages] == [True]
