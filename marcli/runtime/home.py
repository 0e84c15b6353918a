"""`~` and `~user` at the beginning of a path, where no shell has replaced them."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

HOME = re.compile(r"\A((?:(?:--)?[\w.-]+=)?)(~[^/]*/)")  # also behind `--out=` and `data.path=`


def at_home(path: str | Path) -> Path:
    """Return `path` with the home that it begins with; that of an unknown user stays as it is, and is not there."""
    return Path(os.path.expanduser(path))


def words_at_home(words: Iterable[str]) -> list[str]:
    """Return the words of a command line with homes also where they were quoted or came behind `=`.

    A bare `~` is none: in `key=~` it is YAML's null.
    """
    return [HOME.sub(lambda found: found[1] + os.path.expanduser(found[2]), word) for word in words]
