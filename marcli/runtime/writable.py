"""Whether results will find a place, asked before the work."""

import os
from pathlib import Path

from marcli.errors import UsageError


def check_place(folder: Path, *, option: str = "--out") -> None:
    """Raise UsageError where files in `folder`, given as `option`, could not be written; creates nothing."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir():
        raise UsageError(f"{folder} cannot be a folder, for {place} is a file: choose another {option}")
    if not os.access(place, os.W_OK | os.X_OK):
        if os.statvfs(place).f_flag & os.ST_RDONLY:
            raise UsageError(f"{folder} cannot be written to: the file system is read-only; choose another {option}")
        raise UsageError(f"{folder} cannot be written, for you have no permission in {place}: choose another {option}")
