"""The folder of this user that holds what can be fetched or computed again."""

import os
from pathlib import Path


def user_cache() -> Path:
    """Return $MARCLI_CACHE, else $XDG_CACHE_HOME/marcli, else ~/.cache/marcli; it may not exist yet."""
    if folder := os.environ.get("MARCLI_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "marcli"
