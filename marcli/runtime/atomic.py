"""Files and folders that exist completely or not at all, whenever the process is killed."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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
        yield partial
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
            _flush(entry)
        _flush(partial)
        old = path.with_name(f".{path.name}{REPLACED}{os.getpid()}")
        if path.exists():
            os.rename(path, old)
        os.rename(partial, path)
        _flush(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def remove_partials(folder: Path) -> None:
    """Delete what killed writers left in `folder`, or put it back where it is all there is; for the lock's owner."""
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
    return path.with_name(f".{path.stem}{PARTIAL}{os.getpid()}{path.suffix}")


def _flush(path: Path) -> None:
    """Have the kernel write a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
