"""The trade-off as a picture: seconds per image against FID, one curve per system (figure 6 of the paper).

Matplotlib is imported here only, without a display. Classes of engines differ by line style, the recipe's own setting
is a star, and every point carries its step count.
"""

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from marcli.bench.plan import Value
from marcli.bench.points import Measurement
from marcli.runtime.atomic import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"MAR": "#c0392b", "AR": "#2471a3", "DiT": "#566573"}
SHADES = {"Diff Loss": 1.0, "CrossEnt": 0.6, "L2": 0.35}
MARKERS = {"MAR": "o", "AR": "s", "DiT": "^"}
LINES = {"plain": "-", "lossless": "--", "approximate": ":"}
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}
APPROXIMATE_COLOURS = ("#e67e22", "#27ae60", "#8e44ad", "#16a085", "#b7950b", "#c2185b")
BELOW, ABOVE = -1, 1
LABEL_SIDES = {"MAR": BELOW, "AR": ABOVE, "DiT": ABOVE}
SERIES_IN_AXES = 4  # with more the legend stands outside
LETTERS_IN_HALF = 36  # of the legend's width

Series = tuple[str, list[Measurement]]


def draw_tradeoff(measurements: Sequence[Measurement], path: Path, *, distance: str, conditions: str) -> None:
    """Write the picture; without any FID the steps stand on the x axis and the time on the y axis.

    `distance` names the y axis (FID, or another Frechet distance), `conditions` is the small print.
    """
    with picture(path, conditions) as axes:
        has_fid = any(m.fid is not None for m in measurements)
        colours = iter(itertools.cycle(APPROXIMATE_COLOURS))
        for name, series in series_of(measurements):
            shown = [m for m in series if m.fid is not None] if has_fid else series
            approximate = series[0].point.engine_class == "approximate"
            draw_series(axes, name, shown, has_fid=has_fid, colour=next(colours) if approximate else None)
        axes.set_xscale("log")
        if has_fid:
            axes.set(xlabel="seconds per image", ylabel=distance)
            spread_out(axes, [m.fid for m in measurements if m.fid is not None])
        else:
            axes.set(xlabel="steps", ylabel="seconds per image")
            axes.set_yscale("log")


def draw_sweep(measurements: Sequence[Measurement], path: Path, *, distance: str, conditions: str) -> None:
    """Write FID, or time where there is none, against the first setting that was swept (figures 4 and 5)."""
    key = next(m.point.swept[0][0] for m in measurements if m.point.swept)
    groups = swept_series(measurements, key)
    in_words = any(isinstance(value, str | bool | None) for pairs in groups.values() for value, _ in pairs)
    with picture(path, conditions) as axes:
        has_fid = any(m.fid is not None for m in measurements)
        for index, (name, pairs) in enumerate(groups.items()):
            pairs = pairs if in_words else sorted(pairs, key=lambda pair: pair[0])
            values = [m.fid if has_fid else m.seconds_per_image for _, m in pairs]
            errors = [m.fid_spread or 0.0 for _, m in pairs] if has_fid else None
            places = [str(value) if in_words else value for value, _ in pairs]  # an axis takes one kind
            axes.errorbar(places, values, errors, fmt="-o", markersize=4.5, capsize=2, color=f"C{index}", label=name)
        axes.set(xlabel=key, ylabel=distance if has_fid else "seconds per image")


def swept_series(measurements: Sequence[Measurement], key: str) -> dict[str, list[tuple[Value, Measurement]]]:
    """Curves over the swept setting `key`: one per system, engine, preset, step count and other swept value."""
    swept = [m for m in measurements if key in dict(m.point.swept)]
    several_engines = len({m.point.bare_engine for m in swept}) > 1
    several_steps = len({m.point.steps for m in swept}) > 1 and key != "diffusion_steps"
    groups: dict[str, list[tuple[Value, Measurement]]] = {}
    for m in swept:
        name = f"{m.point.family} ({m.point.system})"
        name += f", {m.point.bare_engine}" if several_engines else ""
        name += f", {m.point.preset}" if m.point.preset else ""
        name += f", {m.point.label}" if several_steps else ""
        name += "".join(f", {other} {value}" for other, value in m.point.swept if other != key)
        groups.setdefault(name, []).append((dict(m.point.swept)[key], m))
    return groups


@contextmanager
def picture(path: Path, conditions: str) -> "Iterator[Axes]":
    """Empty axes in the style of all pictures; on leaving they get ticks, legend and small print, and are written."""
    # Where the home cannot be written it takes a temporary folder, and would say so in two long lines.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(5.6, 3.9), layout="constrained")
        axes.margins(x=0.07, y=0.1)
        yield axes
        readable_ticks(axes)
        names = axes.get_legend_handles_labels()[1]
        if len(names) > SERIES_IN_AXES:
            columns = 2 if max(map(len, names)) <= LETTERS_IN_HALF else 1
            figure.legend(loc="outside upper center", handlelength=2.2, ncols=columns, fontsize=8)
        else:
            axes.legend(loc="best", handlelength=2.2)
        axes.set_axisbelow(True)
        figure.text(0.995, 0.002, conditions, ha="right", va="bottom", fontsize=5.5, color="#808080")
        figure.get_layout_engine().set(rect=(0, 0.03, 1, 0.97))
        with atomic_file(path) as partial:
            figure.savefig(partial, dpi=200)
        pyplot.close(figure)


def series_of(measurements: Sequence[Measurement]) -> list[Series]:
    """Curves with their names: one per system, engine and swept values other than the step counts."""
    groups: dict[tuple, list[Measurement]] = {}
    for m in measurements:
        key = (m.point.family, m.point.system, m.point.engine, m.point.kv_cache, m.point.other_swept)
        groups.setdefault(key, []).append(m)
    families: dict[str, set[str]] = {}
    for family, system, *_ in groups:
        families.setdefault(family, set()).add(system)
    engines = {engine for _, _, engine, *_ in groups}
    models = {(family, system, cached) for family, system, _, cached, _ in groups}
    series = []
    for (family, system, engine, cached, fixed), group in groups.items():
        model = f"{family} ({system})" if len(families[family]) > 1 else family
        model += " (KV cache)" if cached else ""
        if len(engines) > 1:
            model = engine if len(models) == 1 else f"{model}, {engine}"
        name = ", ".join([model, *(f"{key} {value}" for key, value in fixed)])
        series.append((name, sorted(group, key=lambda m: m.seconds_per_image)))
    return series


def draw_series(axes: "Axes", name: str, series: list[Measurement], *, has_fid: bool, colour: str | None) -> None:
    """One curve with labelled points and a star at the recipe's own setting; `colour` None is the backbone's."""
    if not series:
        return
    point = series[0].point
    backbone, _, loss = point.family.partition(" ")
    style = {"color": colour or COLOURS[backbone], "alpha": SHADES.get(loss, 1.0)}
    x = [m.seconds_per_image if has_fid else m.point.steps or m.point.diffusion_steps for m in series]
    y = [m.fid if has_fid else m.seconds_per_image for m in series]
    face = "white" if loss in ("CrossEnt", "L2") else style["color"]
    shape = {"marker": MARKERS[backbone], "markersize": 4.5, "markerfacecolor": face, "linewidth": 1.4}
    axes.plot(x, y, LINES[point.engine_class], label=name, **shape, **style)
    if has_fid and any(m.fid_spread is not None for m in series):
        axes.errorbar(x, y, yerr=[m.fid_spread or 0.0 for m in series], fmt="none", capsize=2, linewidth=0.8, **style)
    for m, left, height in zip(series, x, y, strict=True):
        if m.point.is_default:
            axes.plot([left], [height], "*", markersize=11, markeredgecolor="white", markeredgewidth=0.6, **style)
        if not has_fid:
            continue
        side = LABEL_SIDES[backbone]
        axes.annotate(
            str(m.point.steps or m.point.diffusion_steps),
            (left, height + side * (m.fid_spread or 0.0)),
            xytext=(0, 5 if side == ABOVE else -11),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            color=style["color"],
        )


def spread_out(axes: "Axes", values: list[float]) -> None:
    """A logarithmic FID axis where the values differ so much that a linear one would hide the best."""
    if min(values) > 0 and max(values) > 6 * min(values):
        axes.set_yscale("log")


def readable_ticks(axes: "Axes") -> None:
    """Plain numbers on logarithmic axes, at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
        if scale == "log":
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
