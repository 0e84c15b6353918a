"""Files and folders that exist completely or not at all, whenever the process is killed."""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial-"
REPLACED = f"{PARTIAL}old-"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to, with the suffix of `path`; on leaving it takes the place of `path`, flushed to disk.

    On an error nothing changes at `path` and the part written is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        _set_mode(partial, mode)
        _flush(partial)
        os.replace(partial, path)
        _flush(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on leaving it becomes `path`, replacing a folder there. As `atomic_file`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    partial.mkdir()
    try:
        yield partial
        for entry in sorted(partial.rglob("*")):
            if entry.is_file() and not entry.is_symlink():
                _set_mode(entry, partial.stat().st_mode & 0o666)
            _flush(entry)
        _flush(partial)
        old = path.with_name(f".{path.name}{REPLACED}{_writer()}")
        if path.exists():
            os.rename(path, old)
        os.rename(partial, path)
        _flush(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, as `atomic_file`."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(value, indent=1) + "\n")


def remove_partials(folder: Path) -> None:
    """Delete what killed writers left in `folder`, or put back what they had only moved; for the lock's owner."""
    for old in folder.glob(f".*{REPLACED}*"):
        original = folder / old.name[1:].split(REPLACED)[0]
        if not original.exists():
            os.rename(old, original)
    for leftover in folder.glob(f".*{PARTIAL}*"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def sha256_file(path: Path) -> str:
    """Return the hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.stem}{PARTIAL}{_writer()}{path.suffix}")


def _writer() -> str:
    """Tell writers apart, at random, since two containers on one disk may well have equal process ids."""
    return secrets.token_hex(6)


def _set_mode(file: Path, mode: int) -> None:
    """Give a file the rights that the umask leaves; some writers (safetensors) leave it to its owner alone."""
    if file.stat().st_mode & 0o777 != mode & 0o777:
        with suppress(OSError):  # some network disks have no such rights
            file.chmod(mode & 0o777)


def _flush(path: Path) -> None:
    """Have the kernel write a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
