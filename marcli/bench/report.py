"""What the bench says: a table on the terminal, `report.md` and `bench.json`.

Plain, lossless and approximate results stand in tables of their own, so no column ever mixes them.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from marcli.bench.cost import plus
from marcli.bench.points import ENGINE_CLASSES, Measurement
from marcli.runtime.atomic import atomic_file

CLASS_TITLES = {
    "plain": "Plain: the published algorithm",
    "lossless": "Lossless engine: the same pictures up to rounding",
    "approximate": "Approximations: other pictures",
}
UNLIMITED = 10_000
PART_NAMES = {"encoder": "enc", "decoder": "dec", "head": "head", "tokenizer": "tok"}


def columns(measurements: Sequence[Measurement]) -> list[tuple[str, Callable[[Measurement], str]]]:
    """Headings and cells of the table; a column that would say nothing is left out."""
    swept = sorted({name for m in measurements for name, _ in m.point.other_swept})
    parts = "/".join(PART_NAMES.values())
    table: list[tuple[str, Callable[[Measurement], str]]] = [
        ("run", lambda m: m.point.system),
        ("system", lambda m: m.point.family + (", KV cache" if m.point.kv_cache else "")),
        ("AR\nsteps", lambda m: f"{'*' if m.point.is_default else ''}{m.point.steps or '-'}"),
        ("diff.\nsteps", lambda m: str(m.point.diffusion_steps or "-")),
    ]
    if len({m.point.engine for m in measurements}) > 1 or measurements[0].point.engine_class == "approximate":
        table.append(("engine", lambda m: m.point.engine))
    table += [(name, lambda m, name=name: str(dict(m.point.swept).get(name, "-"))) for name in swept]
    if len({m.point.batch_size for m in measurements}) > 1:
        table.append(("batch", lambda m: str(m.point.batch_size)))
    table += [
        ("s\n/image", lambda m: f"{m.seconds_per_image:.3g}"),
        ("spread", lambda m: f"{(m.slowest - m.fastest) / m.seconds_per_image:.0%}" if m.batches > 1 else "-"),
        ("images\n/s", lambda m: short(m.images_per_second)),
        (
            "GFLOP\n/image",
            lambda m: "?" if m.flops_per_image is None else short(m.flops_per_image / 1e9) + plus(m.unpriced),
        ),
        ("roof-\nline", roofline_text),
        (f"time in\n{parts} %", lambda m: share_text(m.part_shares)),
        ("memory\nMiB", lambda m: f"{m.peak_memory_bytes / 2**20:,.0f}"),
    ]
    if any(m.fid is not None for m in measurements):
        table.append(("FID", fid_text))
    return table


def short(value: float) -> str:
    """Three significant digits, never an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def roofline_text(measurement: Measurement) -> str:
    """The share of the least possible time; at least so much where a part is not counted."""
    share = measurement.roofline_share
    return "?" if share is None else f"{'≥ ' if measurement.unpriced else ''}{share:.0%}"


def share_text(shares: dict[str, float]) -> str:
    """Shares of the parts in the time, as `24/50/25/1`; a part that a system lacks is a dash."""
    return "/".join(f"{100 * shares[name]:.0f}" if name in shares else "-" for name in PART_NAMES)


def fid_text(measurement: Measurement) -> str:
    """The distance and its standard error (a jackknife over groups of batches), where enough were measured."""
    if measurement.fid is None:
        return "-"
    spread = "" if measurement.fid_spread is None else f" ± {measurement.fid_spread:.2g}"
    return f"{measurement.fid:.4g}{spread}"


def by_class(measurements: Sequence[Measurement]) -> list[tuple[str, list[Measurement]]]:
    """Measurements of each class of engine that occurs, with its title."""
    groups = {name: [m for m in measurements if m.point.engine_class == name] for name in ENGINE_CLASSES}
    return [(CLASS_TITLES[name], group) for name, group in groups.items() if group]


def print_tables(measurements: Sequence[Measurement]) -> None:
    """One rich table per class of engine."""
    for title, group in by_class(measurements):
        table = Table(title=title, title_justify="left", pad_edge=False, padding=(0, 1, 0, 0), box=box.SIMPLE_HEAD)
        layout = columns(group)
        for heading, _ in layout:
            table.add_column(heading, justify="left" if heading in ("run", "system") else "right", no_wrap=True)
        for measurement in group:
            table.add_row(*(cell(measurement) for _, cell in layout))
        print_whole(table)


def print_whole(table: Table) -> None:
    """Print a table; a narrow terminal wraps lines rather than losing numbers."""
    needed = Console(width=UNLIMITED).measure(table).maximum
    Console(highlight=False, width=max(Console().width, needed)).print(table)


def markdown_tables(measurements: Sequence[Measurement]) -> str:
    """The same tables in Markdown."""
    lines = []
    for title, group in by_class(measurements):
        layout = columns(group)
        headings = " | ".join(heading.replace("-\n", "").replace("\n", " ") for heading, _ in layout)
        lines += [f"## {title}", "", f"| {headings} |"]
        lines.append("|" + "---|" * len(layout))
        lines += ["| " + " | ".join(cell(m) for _, cell in layout) + " |" for m in group]
        lines.append("")
    return "\n".join(lines)


def conditions(report: dict[str, Any]) -> list[str]:
    """What a reader must know to compare the numbers with others."""
    points = report["points"]
    sizes = " or ".join(str(size) for size in sorted({point["batch_size"] for point in points}))
    fewest = min(point["batches"] for point in points)
    peak = report["machine"]["flops_per_second"] / 1e9
    lines = [
        f"marcli {report['marcli']}, torch {report['torch']}, {report['device']}, {report['threads']} threads, "
        f"{report['precision']}, seed {report['seed']}.",
        f"Seconds per image: median over at least {fewest} batches of {sizes} with the device synchronised, the first "
        "batch dropped; points take turns. Spread: (slowest - fastest) / median.",
        "GFLOP: matrix products of the plain algorithm, 2 per multiply-add, guidance counted. Roofline: the time they "
        f"would take at {peak:,.0f} GFLOP/s, which one large product reaches here, over the measured time.",
        "Time shares of encoder / decoder / head / tokenizer come from one more batch with a clock on every part. "
        f"Memory: peak, {report['memory_counts']}, less what other runs, engines and the judging network hold. "
        "An asterisk marks the recipe's own settings.",
    ]
    if report["quality"]:
        lines.append(report["quality"])
    return lines + report["notes"]


def has_swept(path: Path) -> bool:
    """Whether the `bench.json` at `path` has swept points, so that its bench drew `sweep.png`; False if it is none."""
    try:
        return any(point["swept"] for point in json.loads(path.read_text(encoding="utf-8"))["points"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_report(report: dict[str, Any], measurements: Sequence[Measurement], folder: Path) -> list[Path]:
    """Write `bench.json` and `report.md` into `folder`, the numbers first; return their paths.

    The `sweep.png` of a former bench goes before, for this one may draw none.
    """
    if has_swept(folder / "bench.json"):
        (folder / "sweep.png").unlink(missing_ok=True)
    lines = ["# Speed and quality", "", f"`{report['command']}`", ""]
    lines += ["![Speed against quality](tradeoff.png)", ""]
    lines.append(markdown_tables(measurements))
    lines += [f"- {line}" for line in conditions(report)]
    for title in ("regressions", "missing"):
        if report[title]:
            lines += ["", f"## {title.capitalize()}", "", *(f"- {line}" for line in report[title])]
    texts = {"bench.json": json.dumps(report, indent=1, allow_nan=False), "report.md": "\n".join(lines)}
    for name, text in texts.items():
        with atomic_file(folder / name) as partial:
            partial.write_text(text + "\n", encoding="utf-8", errors="surrogateescape")  # any path may be named
    return [folder / name for name in texts]
