"""A run's folder: where everything of one training lies, who may write to it, and how it ended."""

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from marcli.runtime.atomic import remove_partials, write_json
from marcli.runtime.lock import exclusive

State = Literal["running", "done", "stopped", "failed"]


class RunDir:
    """Paths of a self-contained run; making the object touches nothing on disk."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe_path = self.path / "recipe.yaml"
        self.weights_path = self.path / "weights.safetensors"
        self.metrics_path = self.path / "metrics.jsonl"
        self.status_path = self.path / "status.json"
        self.lock_path = self.path / "lock"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.tokenizer_path = self.path / "tokenizer"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only writer; raises MarcliError naming the owner. Leftovers of a killed writer are removed."""
        with exclusive(self.lock_path):
            for folder in (self.path, self.checkpoints, self.samples):
                remove_partials(folder)
            yield

    def write_status(self, state: State, **facts: Any) -> None:
        """Record in status.json how the run stands; exit codes can get lost in a launcher, this does not."""
        status = {
            "state": state,
            "time": time.strftime("%Y-%m-%d %H:%M:%S"),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            **facts,
        }
        write_json(self.status_path, status)

    def discard(self) -> None:
        """Remove a folder in which nothing has begun; one that holds more than a start writes stays as it is."""
        written = {self.recipe_path, self.status_path, self.lock_path, self.tokenizer_path}
        if self.path.is_dir() and written.issuperset(self.path.iterdir()):
            shutil.rmtree(self.path, ignore_errors=True)

    def read_status(self) -> dict[str, Any] | None:
        """Return the last status, or None for a folder that never ran or whose status is damaged."""
        try:
            status = json.loads(self.status_path.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return status if isinstance(status, dict) and "state" in status else None


def newest_run() -> RunDir | None:
    """Return the run under `runs/` whose weights are the latest, or None."""
    weights = [path for path in Path("runs").glob("*/weights.safetensors") if (path.parent / "recipe.yaml").is_file()]
    return RunDir(max(weights, key=lambda path: path.stat().st_mtime).parent) if weights else None
