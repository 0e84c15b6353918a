"""`marcli bench`: what to measure, one call, and what came out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marcli.cli.options import AsJson, BatchSize, DryRun, Gpus, Precision, Seed, Weights, split_overrides
from marcli.cli.output import print_result
from marcli.errors import UsageError
from marcli.runtime.home import at_home
from marcli.runtime.writable import check_place

if TYPE_CHECKING:
    from marcli.bench.points import Measurement
    from marcli.bench.request import Planned, Request

# What is measured when there is no run: the paper's figure on a GPU, its small copy elsewhere.
ON_GPU = ("ablations/figure6_mar_diffusion", "ablations/figure6_ar_ce", "ablations/figure6_dit")
ON_CPU = ("digits", "digits_ar", "digits_dit")

Runs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN KEY=VALUE",
        help="Runs, weights files, published names or hub:USER/NAME; a recipe stands for random weights (speed only). "
        "Without any: the newest run under runs/. Then recipe keys to change, such as sample.cfg=3.",
    ),
]


def bench(
    arguments: Runs = None,
    compare: Annotated[list[str] | None, typer.Option(metavar="RUN", help="One more run, e.g. AR or DiT.")] = None,
    steps: Annotated[
        str | None, typer.Option(help="AR steps of masked models; default: 8,16,32,64,128 as far as there are tokens.")
    ] = None,
    dit_steps: Annotated[str | None, typer.Option(help="Diffusion steps of a DiT; default: 50,75,150,250.")] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V,V", help="Vary a sampling key at the recipe's own steps, e.g. temperature=0.9,1."),
    ] = None,
    fast_preset: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Measure these approximations, too: disa, swift, turbo or lazy; repeatable."),
    ] = None,
    each_switch: Annotated[
        bool,
        typer.Option(
            "--each-switch", help="Take these presets apart: every switch alone, too, at the recipe's own steps."
        ),
    ] = False,
    engine: Annotated[
        str, typer.Option(help="auto, plain or fast; several as plain,fast are measured side by side.")
    ] = "auto",
    batch_size: BatchSize = None,
    num: Annotated[int | None, typer.Option(min=2, help="Pictures per point; default: up to 2,000.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Start no round of batches after so long; 0: no limit; default 4.")
    ] = None,
    quality: Annotated[
        bool | None, typer.Option("--quality/--no-quality", help="FID of the timed pictures; default: where possible.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="As in eval-fid; default: the run's own data where pictures are tiny.")
    ] = None,
    features: Annotated[
        str | None, typer.Option(help="As in eval-fid; default: pixels for tiny pictures, else inception.")
    ] = None,
    inception: Annotated[Path | None, typer.Option(help="Inception's weights; default: downloaded once.")] = None,
    weights: Weights = "ema",
    seed: Seed = 0,
    baseline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A former bench.json; exit 1 where a point got worse.")
    ] = None,
    tolerance: Annotated[str, typer.Option(help="How much worse a point may be: 10% or 0.1.")] = "10%",
    out: Annotated[Path | None, typer.Option(help="Folder; default: bench, inside the run where there is one.")] = None,
    gpus: Gpus = "auto",
    precision: Precision = "auto",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Measure speed and quality against the number of steps: table, plot, JSON, regression gate."""
    from marcli.bench.baseline import judged_images, parse_tolerance, points_of, read_baseline
    from marcli.bench.plan import parse_counts, parse_presets, parse_sweeps
    from marcli.bench.request import Request, parse_engines, plan_known

    names, overrides = split_overrides(arguments)
    share = parse_tolerance(tolerance)
    before = None if baseline is None else read_baseline(baseline)
    lines = []
    if not names:
        names, lines = default_specs(gpus, compared=compare or [])
    names += compare or []
    request = Request(
        specs=tuple(names),
        overrides=tuple(overrides),
        steps=None if steps is None else parse_counts(steps, "--steps"),
        dit_steps=None if dit_steps is None else parse_counts(dit_steps, "--dit-steps"),
        sweep=parse_sweeps(sweep or []),
        presets=parse_presets(fast_preset or []),
        each_switch=each_switch,
        engines=parse_engines(engine),
        batch_size=batch_size or (before and before["points"][0]["batch_size"]),
        num=num,
        minutes=minutes,
        quality=quality,
        reference=reference,
        features=features,
        inception=inception,
        weights=weights,
        seed=seed,
        gated=points_of(before) if before else frozenset(),
        gated_num=judged_images(before) if before else None,
    )
    planned, notes = plan_known(request)
    folder = out or default_folder(names[0])
    check_place(folder)
    if baseline is not None:
        check_is_kept(baseline, folder)
    for line in (*lines, *notes):
        typer.echo(line, err=True)
    if dry_run:
        print_points(planned, folder, as_json=as_json)
        return
    run(request, planned, [*lines, *notes], folder, before, share, gpus=gpus, precision=precision, as_json=as_json)


def default_specs(gpus: str, *, compared: list[str]) -> tuple[list[str], list[str]]:
    """Return the newest run, else recipes that stand for random weights, and a line that says so.

    Raises UsageError where `compared` runs have none beside them.
    """
    from marcli.runtime.rundir import newest_run

    newest = newest_run()
    if newest is not None:
        return [str(newest.path)], [f"Using {newest.path}, the newest run."]
    if compared:
        raise UsageError(f"--compare {compared[0]}: there is no run under runs/ to compare it with, so name one first")
    from marcli.runtime.accelerator import count_gpus

    names = ON_GPU if count_gpus(gpus) else ON_CPU
    return list(names), [
        f"There is no run under runs/: random weights of {', '.join(names)}, so only speed is measured."
    ]


def default_folder(spec: str) -> Path:
    """Where reports go: into a run, else `bench` here."""
    path = at_home(spec)
    return path / "bench" if (path / "recipe.yaml").is_file() else Path("bench")


def check_is_kept(baseline: Path, folder: Path) -> None:
    """Raise UsageError where the report would take the baseline's place: a regression would pass the next time."""
    written = folder / "bench.json"
    if written.exists() and written.samefile(baseline):
        raise UsageError(
            f"The report would overwrite the baseline {baseline}, and a regression would be the next baseline: "
            "give another --out, or keep the baseline under another name"
        )


def print_points(planned: "list[Planned]", folder: Path, *, as_json: bool) -> None:
    """Print what would be measured, with its cost."""
    from marcli.bench.cost import plus, published_cost
    from marcli.bench.points import described, family_of
    from marcli.recipe.approximate import departures

    lines, points = [], []
    for entry in planned:
        if entry.recipe is None:
            lines.append(f"{entry.spec}: its points are known once its weights are there")
        for variant in entry.variants:
            recipe = variant.recipe
            cost, named = published_cost(recipe), ", ".join(departures(recipe.sample.approximate))
            work = f"{cost.flops / 1e9:,.3g} GFLOP{plus(cost.unknown)} per image"
            work += " before approximations" if named else ""
            lines.append(f"{recipe.name} ({family_of(recipe)}): {described(variant)}, {work}")
            counts = f"{recipe.sampling_steps or recipe.sample.diffusion_steps} steps"
            point = {"recipe": recipe.name, "steps": counts, "approximations": named, **dict(variant.swept)}
            points.append(point | {"gflop": cost.flops / 1e9, "unpriced": cost.unknown})
    lines.append(f"reports would go to {folder}")
    print_result(lines, {"points": points, "out": folder}, as_json=as_json)


def run(
    request: "Request",
    planned: "list[Planned]",
    notes: list[str],
    folder: Path,
    before: dict[str, Any] | None,
    tolerance: float,
    *,
    gpus: str,
    precision: str,
    as_json: bool,
) -> None:
    """Measure, write, print, and compare with the baseline; exit code 1 for a regression."""
    from marcli.bench.baseline import check_comparable, compare, complaint
    from marcli.bench.report import conditions, print_tables, write_report
    from marcli.bench.roofline import circumstances
    from marcli.bench.tradeoff import run_bench
    from marcli.runtime.accelerator import start_processes

    processes = start_processes(precision=precision, gpus=gpus)
    if before is not None:
        check_comparable(before, circumstances(processes.device, processes.precision))
    report, measurements = run_bench(planned, notes, request, processes)
    sentence = None
    if before is not None:
        comparison = compare(before, report, tolerance)
        report["regressions"] = [str(regression) for regression in comparison.regressions]
        report["missing"] = comparison.missing
        report["notes"] += comparison.notes
        sentence = complaint(comparison, tolerance)
    try:
        written = [*write_report(report, measurements, folder), *draw(report, measurements, folder)]
    finally:
        print_tables(measurements)  # on a full disk, the only place where the numbers go
    record = {**report, "out": folder} | ({} if sentence is None else {"error": sentence, "exit_code": 1})
    print_result([*conditions(report), f"Written: {', '.join(map(str, written))}"], record, as_json=as_json)
    if sentence is not None:  # not raised: with --json the report stays the last line
        typer.secho("error:", fg="red", bold=True, nl=False, err=True)
        typer.echo(f" {sentence}", err=True)
        raise typer.Exit(1)


def draw(report: dict[str, Any], measurements: "list[Measurement]", folder: Path) -> list[Path]:
    """Draw the pictures and return their paths."""
    from marcli.bench.plot import draw_sweep, draw_tradeoff
    from marcli.bench.tradeoff import small_print

    distance = next((m.fid_name for m in measurements if m.fid_name), "FID")
    pictures = {"tradeoff.png": draw_tradeoff}
    if any(m.point.swept for m in measurements):
        pictures["sweep.png"] = draw_sweep
    for name, drawn in pictures.items():
        drawn(measurements, folder / name, distance=distance, conditions=small_print(report))
    return [folder / name for name in pictures]
