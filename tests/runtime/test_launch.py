"""Several processes from one command: exit codes and signals survive, nothing is orphaned."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from marcli.runtime.launch import first_host, is_worker, join_slurm_step

WORKER = """
import os, sys, time
from pathlib import Path
from marcli.runtime.launch import report_exit_code
from marcli.runtime.stop import StopRequest
folder, codes = Path(sys.argv[1]), sys.argv[2].split(",")
rank = os.environ["RANK"]
code = codes[int(rank)]
if code == "stop":
    with StopRequest() as stop:
        (folder / f"pid-{rank}").write_text(str(os.getpid()))
        while not stop.requested:
            time.sleep(0.05)
        (folder / f"saved-{rank}").write_text(stop.signal_name)
        code = 75
(folder / f"env-{rank}").write_text(os.environ["WORLD_SIZE"] + " " + os.environ["OMP_NUM_THREADS"])
report_exit_code(int(code))
sys.exit(int(code))
"""
PARENT = """
import sys
from marcli.runtime.launch import launch
sys.exit(launch(sys.argv[1:], num_processes=2, module="worker"))
"""


def start(tmp_path: Path, codes: str) -> subprocess.Popen[bytes]:
    """Start a parent whose two workers end as `codes` says."""
    (tmp_path / "worker.py").write_text(WORKER)
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), root])}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        env.pop(name, None)
    return subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), codes], env=env, cwd=tmp_path)


@pytest.mark.parametrize(("codes", "expected"), [("0,0", 0), ("0,2", 2)])
def test_exit_code_is_the_workers(tmp_path: Path, codes: str, expected: int) -> None:
    assert start(tmp_path, codes).wait(timeout=120) == expected
    if expected == 0:
        assert (tmp_path / "env-0").read_text().split()[0] == "2"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_reaches_all_workers_and_none_is_orphaned(tmp_path: Path, number: signal.Signals) -> None:
    parent = start(tmp_path, "stop,stop")
    pids = [tmp_path / "pid-0", tmp_path / "pid-1"]
    try:
        while not all(path.is_file() and path.read_text() for path in pids):
            assert parent.poll() is None
            time.sleep(0.05)
        parent.send_signal(number)
        assert parent.wait(timeout=120) == 75
    finally:
        parent.kill()
    for rank, path in enumerate(pids):
        assert (tmp_path / f"saved-{rank}").read_text() == number.name
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)


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
