"""Several processes from one command: torchrun inside this process, with signals and exit codes that survive it.

torchrun starts `python -m marcli ARGV` once per process, and each notices by RANK that it is one of several. What
torchrun lacks is added: USR1 is forwarded (it would leave orphans), workers get time to save, and their errors come
back as their own, where torchrun would report exit code 1 and a table.
"""

import ctypes
import json
import logging
import os
import re
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from marcli.errors import UNEXPECTED, MarcliError, StoppedError, UsageError
from marcli.runtime.stop import hangup_is_ignored, leave_terminal, stopped_by

REPORTS = "MARCLI_REPORTS"
LAUNCHER = "MARCLI_LAUNCHER"
PR_SET_PDEATHSIG = 1
STOPPED = 75
KILLED = (-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS)
SECONDS_TO_SAVE = 600


def is_worker() -> bool:
    """Return whether torchrun, `accelerate launch` or srun started this process as one of several."""
    return "RANK" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def check_alone(command: str) -> None:
    """Raise UsageError where a launcher started this process beside others: each would do all the work of `command`."""
    if int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise UsageError(f"{command} measures one device in one process: start it without a launcher")


def launch(argv: Sequence[str], *, num_processes: int, module: str = "marcli") -> None:
    """Run `python -m MODULE ARGV` in `num_processes` processes of this machine; no worker outlives the call.

    Returns when all are done. Raises what the workers reported: UsageError or MarcliError with their sentence, or
    StoppedError when all that ended early were asked to stop.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):  # it would repeat the reports at length
            logging.getLogger(name).setLevel(logging.CRITICAL)
    options = ["--standalone", "--nnodes=1", f"--nproc-per-node={num_processes}"]
    handled = ["SIGTERM", "SIGINT", "SIGUSR1", "SIGQUIT", *([] if hangup_is_ignored() else ["SIGHUP"])]
    options += [f"--shutdown-timeout={SECONDS_TO_SAVE}", f"--signals-to-handle={','.join(handled)}"]
    with tempfile.TemporaryDirectory(prefix="marcli-launch-") as folder:
        reports, logs = Path(folder, "reports"), Path(folder, "logs")  # torchrun would leave its logs' folder behind
        reports.mkdir()
        os.environ |= {REPORTS: str(reports), LAUNCHER: str(os.getpid())}
        try:
            arguments = parse_args([*options, f"--log-dir={logs}", "-m", module])
            arguments.training_script_args = list(argv)  # not parsed: --num would be taken for --numa-binding
            run(arguments)
        except ChildFailedError as failed:
            died = {rank: failure.exitcode for rank, failure in failed.failures.items()}
            raise _worst(_read_reports(reports), num_processes, died) from None
        except SignalException as stopped:
            if stopped.sigval == signal.SIGHUP:
                leave_terminal()
            said = _read_reports(reports)
            for rank in set(range(num_processes)) - set(said):  # it had not even begun
                said[rank] = {"code": STOPPED, "sentence": str(stopped_by(signal.Signals(stopped.sigval).name))}
            raise _worst(said, num_processes, {}) from None
        finally:
            del os.environ[REPORTS], os.environ[LAUNCHER]


def follow_launcher() -> None:
    """Have this worker asked to stop when its launcher dies, even by SIGKILL; does nothing but on Linux."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None or "RANK" not in os.environ or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(launcher):  # it died before the call
        os.kill(os.getpid(), signal.SIGTERM)


def report_exit(code: int, sentence: str) -> bool:
    """Tell the launcher how this worker ends; return False where there is none to tell."""
    folder = os.environ.get(REPORTS)
    if not folder or "RANK" not in os.environ:
        return False
    try:
        Path(folder, os.environ["RANK"]).write_text(json.dumps({"code": code, "sentence": sentence}))
    except OSError:
        return False
    return True


def join_slurm_step() -> bool:
    """Translate srun's variables into the ones torch reads, unless a launcher has set these; return whether it did."""
    if "RANK" in os.environ or not is_worker():
        return False
    hosts = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", "localhost")
    os.environ.update(
        RANK=os.environ["SLURM_PROCID"],
        WORLD_SIZE=os.environ["SLURM_STEP_NUM_TASKS"],
        LOCAL_RANK=os.environ.get("SLURM_LOCALID", "0"),
        MASTER_ADDR=os.environ.get("MASTER_ADDR", first_host(hosts)),
        MASTER_PORT=os.environ.get("MASTER_PORT", str(20_000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20_000)),
    )
    return True


def first_host(nodelist: str) -> str:
    """Return the first name of SLURM's `node[003-007,9],other` notation."""
    found = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\])?([^,\[]*)", nodelist)
    return "".join(part or "" for part in found.groups()) if found else nodelist


def _read_reports(folder: Path) -> dict[int, dict[str, Any]]:
    """Return the reports by rank, the earliest first: later ones are often about the first one's end."""
    paths = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return {int(path.name): json.loads(path.read_text()) for path in paths}


def _worst(reports: dict[int, dict[str, Any]], num_processes: int, died: dict[int, int]) -> MarcliError | StoppedError:
    """Return the error of the workers: a reported one outranks a silent death, which outranks a stop.

    An unexpected error counts only where no worker was killed: it may just be the lost connection to that one.
    """
    failed = [report for report in reports.values() if report["code"] not in (0, STOPPED)]
    silent = set(range(num_processes)) - set(reports)
    was_killed = any(died.get(rank) in KILLED for rank in silent)
    for report in failed:
        if not (was_killed and report["sentence"].endswith(UNEXPECTED)):
            return (UsageError if report["code"] == 2 else MarcliError)(report["sentence"])
    if silent:
        # One died by itself; the others may have been terminated for it before they could say a word.
        rank = min(silent, key=lambda rank: (died.get(rank, -signal.SIGTERM) == -signal.SIGTERM, rank))
        code = died.get(rank, 0)
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        why = " (often the system is out of memory)" if code == -signal.SIGKILL else ""
        return MarcliError(f"Process {rank} of {num_processes} died without a word, by {how}{why}")
    sentences = [report["sentence"] for report in reports.values() if report["code"] == STOPPED]
    return StoppedError(sentences[0] if sentences else "Stopped, after everything was done.")
