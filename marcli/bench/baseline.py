"""The regression gate: today's numbers against a `bench.json` of before.

Special: it refuses to compare what is not comparable (another machine, precision, batch size or number of images)
instead of calling it a regression.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marcli.errors import MarcliError, UsageError

FORMAT = "marcli bench 1"
SAME = ("device", "threads", "precision")


@dataclass(frozen=True)
class Regression:
    """One number of one point that got worse by more than the tolerance."""

    key: str
    quantity: str
    before: float
    now: float

    def __str__(self) -> str:
        return f"{self.key}: {self.quantity} {self.before:.4g} -> {self.now:.4g} ({self.now / self.before - 1:+.1%})"


def parse_tolerance(text: str) -> float:
    """Read `10%` or `0.1` as 0.1; raises UsageError."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 10:
        raise UsageError(f"--tolerance {text!r} is not a share: write 10% or 0.1")
    return value


def read_baseline(path: Path) -> dict[str, Any]:
    """Read a `bench.json`; raises UsageError when it is not one."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"There is no baseline {path}: run bench once and keep its bench.json there") from None
    except (OSError, UnicodeDecodeError, ValueError) as problem:
        raise UsageError(
            f"The baseline {path} cannot be read ({problem}): give the bench.json of a former run"
        ) from None
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise UsageError(f"The baseline {path} is not a bench.json of this program ({FORMAT!r}): measure it again")
    return report


def check_comparable(baseline: dict[str, Any], current: dict[str, Any]) -> None:
    """Raise UsageError when the baseline comes from other hardware or settings."""
    for name in SAME:
        if baseline.get(name) != current.get(name):
            raise UsageError(
                f"The baseline's {name} is {baseline.get(name)!r}, here it is {current.get(name)!r}: "
                "times can only be compared with a baseline measured under the same conditions"
            )


def find_regressions(
    baseline: dict[str, Any], current: dict[str, Any], tolerance: float
) -> tuple[list[Regression], list[str]]:
    """Return what got worse by more than `tolerance`, and lines on what could not be compared."""
    now = {point["key"]: point for point in current["points"]}
    regressions, notes = [], []
    for before in baseline["points"]:
        after = now.get(before["key"])
        if after is None:
            notes.append(f"{before['key']}: in the baseline, not measured now")
            continue
        quantities = ["seconds_per_image", "peak_memory_bytes"]
        if before["fid"] is not None and after["fid"] is not None:
            if (before["fid_images"], before["fid_protocol"]) == (after["fid_images"], after["fid_protocol"]):
                quantities.append("fid")
            else:
                notes.append(f"{before['key']}: FID not compared, it was measured on other images or features")
        regressions += [
            Regression(before["key"], quantity, before[quantity], after[quantity])
            for quantity in quantities
            if after[quantity] > before[quantity] * (1 + tolerance)
        ]
    if not now.keys() & {point["key"] for point in baseline["points"]}:
        raise MarcliError("None of the baseline's points was measured now: use the same runs, steps and batch size")
    new = len(now.keys() - {point["key"] for point in baseline["points"]})
    if new:
        notes.append(f"{new} points are not in the baseline")
    return regressions, notes
