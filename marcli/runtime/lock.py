"""One writer per folder: a lock that says who holds it and dies with its owner.

The kernel's `flock` decides, so a process killed in any way leaves nothing to clean up on its host. The text in the
file is for the reader, and for other hosts, where a file system may not pass `flock` on.
"""

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from marcli.errors import MarcliError

NO_LOCKS_HERE = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)

log = logging.getLogger("marcli")


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; raises MarcliError at once, naming pid and host, when another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _held(path, _read_owner(file)) from None
        except OSError as error:
            if error.errno not in NO_LOCKS_HERE:
                raise
            log.warning("%s: this disk has no file locks (%s); start one command at a time here", path, error.strerror)
        owner = _read_owner(file)
        if not _may_take_over(owner):
            raise _held(path, owner)
        # A forked child shares the lock; without this it would outlive a killed parent.
        os.register_at_fork(after_in_child=lambda: _close_quietly(file))
        _write_owner(file)
        try:
            yield
        finally:
            file.truncate(0)


def _may_take_over(owner: dict[str, Any]) -> bool:
    """A free `flock` proves death on this host; elsewhere only the same (requeued) job does."""
    if not owner or owner.get("host") == socket.gethostname():
        return True
    job = owner.get("slurm_job")
    return job is not None and job == os.environ.get("SLURM_JOB_ID")


def _held(path: Path, owner: dict[str, Any]) -> MarcliError:
    who = f"process {owner.get('pid', '?')} on host {owner.get('host', '?')}, since {owner.get('since', '?')}"
    return MarcliError(
        f"{path.parent} is in use by {who}: stop that one, or choose another folder "
        f"(if it is dead on another host, delete {path})"
    )


def _read_owner(file: IO[str]) -> dict[str, Any]:
    file.seek(0)
    try:
        owner = json.loads(file.read() or "{}")
    except json.JSONDecodeError:  # its writer was killed halfway
        owner = {}
    return owner if isinstance(owner, dict) else {}


def _write_owner(file: IO[str]) -> None:
    owner = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }
    file.truncate(0)
    file.write(json.dumps(owner))
    file.flush()


def _close_quietly(file: IO[str]) -> None:
    if not file.closed:
        file.close()
