"""Several processes from one command: torchrun inside this process, with signals and exit codes that survive it.

torchrun starts `python -m marcli ARGV` once per process, and each notices by RANK that it is one of several. What
torchrun lacks is added: USR1 is forwarded (it would leave orphans), workers get time to save, and the exit code of
the command is the workers' own, which torchrun would turn into 1.
"""

import os
import re
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from marcli.errors import StoppedError

EXIT_CODES = "MARCLI_EXIT_CODES"
SECONDS_TO_SAVE = 600


def is_worker() -> bool:
    """Return whether torchrun, `accelerate launch` or srun started this process as one of several."""
    return "RANK" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def launch(argv: Sequence[str], *, num_processes: int, module: str = "marcli") -> int:
    """Run `python -m MODULE ARGV` in `num_processes` processes here; return the exit code of the worst.

    Returns 75 when all were asked to stop and saved. No worker outlives the call.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):  # until torchrun installs its own
        signal.signal(number, _stop_before_start)
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    options = [
        "--standalone",
        "--nnodes=1",
        f"--nproc-per-node={num_processes}",
        f"--shutdown-timeout={SECONDS_TO_SAVE}",
    ]
    options.append("--signals-to-handle=SIGTERM,SIGINT,SIGUSR1,SIGHUP,SIGQUIT")
    with tempfile.TemporaryDirectory(prefix="marcli-launch-") as folder:
        os.environ[EXIT_CODES] = folder
        try:
            run(parse_args([*options, "-m", module, *argv]))
            return 0
        except ChildFailedError as failed:
            codes = _reported_codes(Path(folder)) or [failure.exitcode for failure in failed.failures.values()]
            return _worst(codes)
        except SignalException:
            codes = _reported_codes(Path(folder))
            return _worst(codes) if len(codes) == num_processes else 1
        finally:
            del os.environ[EXIT_CODES]


def report_exit_code(code: int) -> None:
    """Tell the launcher how this worker ends; without a launcher, do nothing."""
    folder = os.environ.get(EXIT_CODES)
    if folder and "RANK" in os.environ:
        Path(folder, os.environ["RANK"]).write_text(str(code))


def join_slurm_step() -> None:
    """Translate srun's variables into the ones torch reads, unless a launcher has set these."""
    if "RANK" in os.environ or not is_worker():
        return
    hosts = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", "localhost")
    os.environ.update(
        RANK=os.environ["SLURM_PROCID"],
        WORLD_SIZE=os.environ["SLURM_STEP_NUM_TASKS"],
        LOCAL_RANK=os.environ.get("SLURM_LOCALID", "0"),
        MASTER_ADDR=os.environ.get("MASTER_ADDR", first_host(hosts)),
        MASTER_PORT=os.environ.get("MASTER_PORT", str(20_000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20_000)),
    )


def first_host(nodelist: str) -> str:
    """Return the first name of SLURM's `node[003-007,9],other` notation."""
    found = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\])?([^,\[]*)", nodelist)
    return "".join(part or "" for part in found.groups()) if found else nodelist


def _stop_before_start(number: int, frame: FrameType | None) -> None:
    raise StoppedError("Stopped before anything began.")


def _reported_codes(folder: Path) -> list[int]:
    return [int(path.read_text() or 1) for path in folder.iterdir()]


def _worst(codes: Sequence[int]) -> int:
    """A failure outranks a stop (75), which outranks success; death by a signal (negative) is a failure."""
    failures = [code for code in codes if code not in (0, 75)]
    if failures:
        return failures[0] if failures[0] > 0 else 1
    return max(codes, default=1)
