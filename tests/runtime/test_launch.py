"""Several processes from one command: exit codes and signals survive, nothing is orphaned."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from marcli.errors import UNEXPECTED
from marcli.runtime.launch import _worst, first_host, is_worker, join_slurm_step

WORKER = """
import os, sys, time
from pathlib import Path
from marcli.runtime.launch import follow_launcher, report_exit
from marcli.runtime.stop import StopRequest
follow_launcher()
codes, folder, rank = sys.argv[1].split(","), Path(sys.argv[2]), os.environ["RANK"]
code = codes[int(rank)]
pid = folder / f"pid-{rank}"
if code == "stop":
    with StopRequest() as stop:
        pid.write_text(str(os.getpid()))
        while not stop.requested:
            time.sleep(0.05)
    (folder / f"stopped-{rank}").touch()
    report_exit(75, f"stopped by {stop.signal_name}")
    sys.exit(75)
if code == "go":
    pid.write_text(str(os.getpid()))
    while not (folder / "go").exists():
        time.sleep(0.05)
    code = "0"
if code == "wait":
    pid.write_text(str(os.getpid()))
    time.sleep(600)
if code == "-9":
    os.kill(os.getpid(), 9)
report_exit(int(code), f"sentence {code} of {os.environ['WORLD_SIZE']}")
sys.exit(int(code))
"""
PARENT = """
import os, signal, sys
from marcli.errors import MarcliError, StoppedError
from marcli.runtime.launch import launch
signal.signal(signal.SIGHUP, signal.SIG_IGN if os.environ.get("NOHUP") else signal.SIG_DFL)
for codes in sys.argv[2:]:
    try:
        print(launch([codes, sys.argv[1]], num_processes=2, module="worker"), flush=True)
    except (MarcliError, StoppedError) as error:
        print(type(error).__name__, error, flush=True)
"""
OUTCOMES = {
    "0,0": "None",
    "0,1": "MarcliError sentence 1 of 2",
    "2,0": "UsageError sentence 2 of 2",
    "wait,-9": "MarcliError Process 1 of 2 died without a word, by SIGKILL (often the system is out of memory)",
}


def start(folder: Path, *rounds: str) -> subprocess.Popen[str]:
    """Start a parent that launches two workers per round, which end as the round's codes say."""
    (folder / "worker.py").write_text(WORKER)
    env = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    env["PYTHONPATH"] = os.pathsep.join([str(folder), str(Path(__file__).parents[2])])
    env["TMPDIR"] = str(folder / "temporary")
    Path(env["TMPDIR"]).mkdir()
    command = [sys.executable, "-c", PARENT, str(folder), *rounds]
    return subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_text(parent: subprocess.Popen[str], *paths: Path) -> list[str]:
    """What the workers have written into all of these files, once they have."""
    while not all(path.is_file() and path.read_text() for path in paths):
        assert parent.poll() is None
        time.sleep(0.05)
    return [path.read_text() for path in paths]


def test_errors_are_the_workers_own_and_nothing_stays_behind(tmp_path: Path) -> None:
    out, err = start(tmp_path, *OUTCOMES).communicate(timeout=240)
    assert out.splitlines() == list(OUTCOMES.values())
    assert err == ""
    assert list((tmp_path / "temporary").iterdir()) == []


def test_signals_reach_all_workers_and_none_is_orphaned(tmp_path: Path) -> None:
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    parent = start(tmp_path, *["stop,stop"] * len(numbers))
    pids = [tmp_path / "pid-0", tmp_path / "pid-1"]
    try:
        for number in numbers:
            workers = [int(pid) for pid in wait_for_text(parent, *pids)]
            for path in pids:
                path.unlink()
            parent.send_signal(number)
            assert parent.stdout.readline() == f"StoppedError stopped by {number.name}\n"
            for worker in workers:
                with pytest.raises(ProcessLookupError):
                    os.kill(worker, 0)
        assert parent.wait(timeout=60) == 0 and parent.stderr.read() == ""
    finally:
        parent.kill()


def test_workers_that_had_not_begun_when_asked_to_stop_were_stopped(tmp_path: Path) -> None:
    parent = start(tmp_path, "wait,wait")
    try:
        wait_for_text(parent, tmp_path / "pid-0", tmp_path / "pid-1")
        parent.send_signal(signal.SIGINT)
        assert parent.stdout.readline().startswith(
            "StoppedError Stopped by SIGINT: what was written before is complete"
        )
    finally:
        parent.kill()


def test_the_launcher_ignores_a_hangup_that_it_was_told_to_ignore(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("NOHUP", "1")
    parent = start(tmp_path, "go,go")
    try:
        wait_for_text(parent, tmp_path / "pid-0", tmp_path / "pid-1")
        parent.send_signal(signal.SIGHUP)
        (tmp_path / "go").touch()
        assert parent.stdout.readline() == "None\n"
    finally:
        parent.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_workers_save_and_stop_when_the_launcher_is_killed(tmp_path: Path) -> None:
    parent = start(tmp_path, "stop,stop")
    try:
        wait_for_text(parent, tmp_path / "pid-0", tmp_path / "pid-1")
    finally:
        parent.kill()
    end = time.monotonic() + 240
    while not all((tmp_path / f"stopped-{rank}").exists() for rank in (0, 1)):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_srun_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_NTASKS", "4")  # a batch script outside srun: not a worker
    assert not is_worker()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "123456")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "gpu[007-008]")
    assert is_worker()
    join_slurm_step()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    assert [os.environ[name] for name in names] == ["3", "4", "1", "gpu007", "23456"]


def test_first_host() -> None:
    assert [first_host(text) for text in ("a", "a,b", "n[3-7,9],m", "n[12]x,y", "host-1.lan")] == [
        "a", "a", "n3", "n12x", "host-1.lan",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        (f"RuntimeError: Connection reset by peer {UNEXPECTED}", "Process 1 of 2 died without a word, by SIGKILL"),
        ("the disk is full", "the disk is full"),
    ],
)
def test_a_connection_lost_to_a_killed_process_is_not_the_cause(sentence: str, said: str) -> None:
    assert str(_worst({0: {"code": 1, "sentence": sentence}}, 2, {0: 1, 1: -9})).startswith(said)
    assert str(_worst({0: {"code": 1, "sentence": sentence}}, 2, {0: 1, 1: -15})) == sentence
