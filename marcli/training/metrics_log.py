"""What training reports: tensors collected without waiting, fetched together, averaged into one line per window.

A line is {"step", "epoch", "lr", "loss", "grad_norm", "withheld", "seconds", "images_per_second"}. The window that is
open when a checkpoint is written travels in it, so a resumed run writes the lines an uninterrupted one would.
"""

import importlib.util
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import filter_trackers
from torch import Tensor

from marcli.errors import UsageError
from marcli.runtime.accelerator import Processes
from marcli.runtime.atomic import atomic_file

TIMING_KEYS = ("seconds", "images_per_second")


@dataclass(frozen=True)
class StepRecord:
    """One finished step, on the host. `streak` counts withheld updates in a row, this one included."""

    step: int
    loss: float
    grad_norm: float
    streak: int


class Window:
    """The steps since the last line: some still on the device, the others on the host."""

    def __init__(self, state: list[dict]):
        self.fetched = [StepRecord(**record) for record in state]
        self.pending: list[tuple[int, Tensor]] = []

    def add(self, step: int, loss: Tensor, norm: Tensor, streak: Tensor) -> None:
        """Remember a step's numbers without fetching them."""
        self.pending.append((step, torch.stack([loss.float(), norm.float(), streak.float()])))

    def fetch(self) -> list[StepRecord]:
        """Wait for the device; return the records that were pending."""
        if not self.pending:
            return []
        rows = torch.stack([values for _, values in self.pending]).tolist()
        new = [
            StepRecord(step=step, loss=loss, grad_norm=norm, streak=int(streak))
            for (step, _), (loss, norm, streak) in zip(self.pending, rows, strict=True)
        ]
        self.pending.clear()
        self.fetched += new
        return new

    def state(self) -> list[dict]:
        """Return the fetched records as JSON."""
        return [asdict(record) for record in self.fetched]

    def close(self) -> dict:
        """Return the averages over the window's updates and start the next one."""
        taken = [record for record in self.fetched if record.streak == 0]
        summary = {
            "loss": sum(r.loss for r in taken) / len(taken) if taken else None,
            "grad_norm": sum(r.grad_norm for r in taken) / len(taken) if taken else None,
            "withheld": len(self.fetched) - len(taken),
        }
        self.fetched = []
        return summary


class MetricsLog:
    """Writes `metrics.jsonl` and the trackers, from the main process only."""

    def __init__(self, path: Path, processes: Processes, *, after_step: int, images_per_step: int):
        self.path, self.processes, self.images_per_step = path, processes, images_per_step
        self.last_step, self.since = after_step, time.monotonic()
        if processes.is_main:
            drop_lines_after(path, after_step)

    def write(self, line: dict) -> None:
        """Add the time since the last line to `line`, which has a "step", and write it."""
        now = time.monotonic()
        seconds, images = now - self.since, (line["step"] - self.last_step) * self.images_per_step
        self.since, self.last_step = now, line["step"]
        if not self.processes.is_main:
            return
        line = {**line, "seconds": round(seconds, 3), "images_per_second": round(images / max(seconds, 1e-9), 2)}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        numbers = {name: value for name, value in line.items() if name != "step" and value is not None}
        self.processes.accelerator.log(numbers, step=line["step"])


def check_trackers(names: Sequence[str]) -> None:
    """Raise UsageError naming the tracker that is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UsageError(
                f"train.trackers asks for {name}, which is not installed: install marcli[trackers], "
                "or leave it out (metrics.jsonl is always written)"
            )


def start_trackers(accelerator: Accelerator, names: Sequence[str], folder: Path, *, run_name: str) -> None:
    """Start tensorboard or wandb through Accelerate."""
    accelerator.log_with = filter_trackers(list(names), logging_dir=str(folder))
    accelerator.project_configuration.set_directories(str(folder))
    accelerator.init_trackers(run_name)


def drop_lines_after(path: Path, step: int) -> None:
    """Keep the lines up to `step`: what was written after the checkpoint will be written again."""
    if not path.exists():
        return
    kept = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            is_kept = json.loads(text)["step"] <= step
        except (ValueError, TypeError, KeyError):
            continue  # a line cut by a kill, or damaged
        if is_kept:
            kept.append(text + "\n")
    with atomic_file(path) as aside:
        aside.write_text("".join(kept))
