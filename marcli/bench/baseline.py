"""The regression gate: today's numbers against an earlier `bench.json`.

It refuses to compare what is not comparable (another machine, precision, batch size or number of images) instead of
calling it a regression.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marcli.errors import UsageError

FORMAT = "marcli bench 2"
SAME = ("device", "threads", "precision")


@dataclass(frozen=True)
class Regression:
    """One number of one point that got worse by more than the tolerance."""

    key: str
    quantity: str
    before: float
    now: float

    def __str__(self) -> str:
        change = f" ({self.now / self.before - 1:+.1%})" if self.before else ""
        return f"{self.key}: {self.quantity} {self.before:.4g} -> {self.now:.4g}{change}"


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
    points = report.get("points")
    if not isinstance(points, list) or not points or not all(map(is_measured, points)):
        raise UsageError(f"The baseline {path} has no points, or points without their numbers: measure it again")
    return report


def is_measured(point: object) -> bool:
    """Whether this is a point of a report, with every number that is compared."""
    if not isinstance(point, dict) or not all(isinstance(point.get(name), str) for name in ("key", "system")):
        return False
    if not all(isinstance(point.get(name, ""), int | None) for name in ("steps", "diffusion_steps")):
        return False
    fid = point.get("fid", "absent")
    return (
        is_number(point.get("seconds_per_image"))
        and point["seconds_per_image"] > 0
        and is_number(point.get("peak_memory_bytes"))
        and isinstance(point.get("batch_size"), int)
        and point["batch_size"] > 0
        and (fid is None or (is_number(fid) and isinstance(point.get("fid_images"), int) and "fid_protocol" in point))
    )


def is_number(value: object) -> bool:
    """Whether a value out of JSON is a finite number, from 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def points_of(baseline: dict[str, Any]) -> frozenset[tuple[str, int | None, int | None]]:
    """The (system, AR steps, diffusion steps) that a baseline has."""
    return frozenset((point["system"], point["steps"], point["diffusion_steps"]) for point in baseline["points"])


def judged_images(baseline: dict[str, Any]) -> int | None:
    """The number of pictures that a baseline's distances are of; None where it has none."""
    return max((point["fid_images"] for point in baseline["points"] if point["fid"] is not None), default=None)


def check_comparable(baseline: dict[str, Any], current: dict[str, Any]) -> None:
    """Raise UsageError when the baseline comes from other hardware or settings."""
    for name in SAME:
        if baseline.get(name) != current.get(name):
            raise UsageError(
                f"The baseline's {name} is {baseline.get(name)!r}, here it is {current.get(name)!r}: "
                "times can only be compared with a baseline measured under the same conditions"
            )


@dataclass(frozen=True)
class Comparison:
    """What got worse, what the baseline has and nobody measured now, and lines on what could not be compared."""

    regressions: list[Regression]
    missing: list[str]
    notes: list[str]


def compare(baseline: dict[str, Any], current: dict[str, Any], tolerance: float) -> Comparison:
    """Compare point by point; all that the baseline has must have been measured, else a gate could pass unseen."""
    now = {point["key"]: point for point in current["points"]}
    regressions, missing, notes = [], [], []
    for before in baseline["points"]:
        after = now.pop(before["key"], None)
        if after is None:
            missing.append(before["key"])
            continue
        quantities = ["seconds_per_image", "peak_memory_bytes"]
        if before["fid"] is not None and after["fid"] is None:
            missing.append(f"FID of {before['key']}")
        elif before["fid"] is not None:
            if (before["fid_images"], before["fid_protocol"]) == (after["fid_images"], after["fid_protocol"]):
                quantities.append("fid")
            else:
                notes.append(f"{before['key']}: FID not compared, it was measured on other images or features")
        regressions += [
            Regression(before["key"], quantity, before[quantity], after[quantity])
            for quantity in quantities
            if after[quantity] > before[quantity] * (1 + tolerance)
        ]
    if now:
        notes.append(f"{len(now)} points are not in the baseline")
    return Comparison(regressions, missing, notes)


def complaint(comparison: Comparison, tolerance: float) -> str | None:
    """The sentence of a gate that fails; None when it passes."""
    sentences = []
    if worse := comparison.regressions:
        listed = "; ".join(map(str, worse))
        sentences.append(f"{len(worse)} numbers are more than {tolerance:.0%} worse than the baseline: {listed}")
    if missing := comparison.missing:
        sentences.append(
            f"{len(missing)} numbers of the baseline were not measured now: {'; '.join(missing)}; use the same runs, "
            "steps and options, or make a baseline of what is measured now"
        )
    return ". ".join(sentences) or None
