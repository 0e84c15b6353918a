"""The folder of this user that holds what can be fetched or computed again."""

import os
from pathlib import Path

from marcli.runtime.home import at_home


def user_cache() -> Path:
    """Return $MARCLI_CACHE, else $XDG_CACHE_HOME/marcli, else ~/.cache/marcli; it may not exist yet."""
    if folder := os.environ.get("MARCLI_CACHE"):
        return at_home(folder)
    return at_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "marcli"
