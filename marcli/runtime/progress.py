"""Progress with rate and time left: one moving line on a terminal, now and then a plain line elsewhere.

It writes to standard error, so that standard output holds results only.
"""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Context manager that counts to `total` units; silent unless `shown` (the main process)."""

    def __init__(self, *, title: str, total: int, unit: str, shown: bool, done: int = 0) -> None:
        self.title, self.total, self.unit, self.shown = title, total, unit, shown
        self.done = self._first = self._told = done
        self._console = Console(stderr=True, highlight=False)
        self._facts = ""
        self._bar: Bar | None = None

    def __enter__(self) -> "Progress":
        self._started = self._last_line = time.monotonic()
        if self.shown and self._console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("left"),
                TextColumn("{task.fields[facts]}"),
                console=self._console,
            )
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.done, rate="", facts="")
            self._bar.start()
        return self

    def advance(self, count: int = 1, **facts: object) -> None:
        """Count `count` more units; `facts` (such as loss="0.31") are shown from now on."""
        self.done += count
        if facts:
            self._facts = "  ".join(f"{name} {value}" for name, value in facts.items())
        if self._bar:
            self._bar.update(self._task, completed=self.done, rate=self._rate_text(), facts=self._facts)
        elif self.shown and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._print_line()

    def say(self, text: str) -> None:
        """Print a line without disturbing the bar."""
        if self.shown:
            self._console.print(text, markup=False, soft_wrap=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif self.shown and self.done > self._told:
            self._print_line()

    def line(self) -> str:
        """Return the plain line: how far, how fast, how long still."""
        parts = [f"{self.title}: {self.done:,} of {self.total:,} {self.unit}", self._rate_text()]
        rate = self._rate()
        if rate and self.done < self.total:
            parts.append(f"{_duration((self.total - self.done) / rate)} left")
        return "  ".join(part for part in (*parts, self._facts) if part)

    def _print_line(self) -> None:
        self._last_line, self._told = time.monotonic(), self.done
        self._console.print(self.line(), markup=False, soft_wrap=True)

    def _rate(self) -> float:
        elapsed = time.monotonic() - self._started
        return (self.done - self._first) / elapsed if elapsed > 0 else 0.0

    def _rate_text(self) -> str:
        rate = self._rate()
        one = self.unit.removesuffix("es" if self.unit.endswith("ches") else "s")
        return f"{rate:,.1f} {self.unit}/s" if rate >= 1 or not rate else f"{1 / rate:,.1f} s per {one}"


def _duration(seconds: float) -> str:
    minutes, whole = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{whole:02d}"
