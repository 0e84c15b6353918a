"""Table 1 of the paper at the size of digits: python tests/benchmarks/table1.py [--seeds 0,1,2] [--out runs/table1]

Trains the eight rows of recipes/table1 (equal optimizer steps, batch and parameters) once per seed, draws 2,000
samples of each without and with guidance, scores them as digits_score.py does, and prints a Markdown table with the
paper's numbers beside it. What is finished is kept, so an interrupted call goes on.
"""

import argparse
import json
import statistics
from pathlib import Path

from digits_score import read_samples, score

from marcli.cli.app import run
from marcli.runtime.atomic import atomic_file

# row: variant, order, direction, predictions per step, loss, then the paper's FID without and with guidance
ROWS = {
    "digits_ar_ce": ("AR", "raster", "causal", "1", "CrossEnt", 19.58, 4.92),
    "digits_ar_diffusion": ("AR", "raster", "causal", "1", "Diff Loss", 19.23, 4.69),
    "digits_mar_causal_ce": ("MAR", "rand", "causal", "1", "CrossEnt", 16.22, 4.36),
    "digits_mar_causal_diffusion": ("MAR", "rand", "causal", "1", "Diff Loss", 13.07, 4.07),
    "digits_mar_bidirectional_ce": ("MAR", "rand", "bidirect", "1", "CrossEnt", 8.75, 3.50),
    "digits_mar_bidirectional_diffusion": ("MAR", "rand", "bidirect", "1", "Diff Loss", 3.43, 1.84),
    "digits_mar_default_ce": ("MAR (default)", "rand", "bidirect", ">1", "CrossEnt", 8.79, 3.69),
    "digits_mar_default_diffusion": ("MAR (default)", "rand", "bidirect", ">1", "Diff Loss", 3.50, 1.98),
}
GUIDANCE = 1.5
SAMPLES = 2000


def call(*arguments: object) -> None:
    """Run one marcli command line; stop at the first that fails."""
    code = run([str(argument) for argument in arguments])
    if code:
        raise SystemExit(code)


def measure(row: str, seed: int, out: Path) -> dict[str, float]:
    """Train one row with one seed and score it twice; the result is kept in the run's folder."""
    folder = out / f"{row}-seed{seed}"
    kept = folder / "table1.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    recipe = Path(__file__).parents[2] / "recipes" / "table1" / f"{row}.yaml"
    call("train", recipe, "--out", folder, f"train.seed={seed}", "--gpus", 0)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    result = {"train_seconds": sum(line["seconds"] for line in lines)}
    for name, cfg in (("without", 1), ("with", GUIDANCE)):
        samples = folder / "samples" / name
        call("sample", folder, "--num", SAMPLES, "--batch-size", 500, "--cfg", cfg, "--npz", "--out", samples)
        scores = score(*read_samples(samples / "samples.npz"))
        result |= {f"{key}_{name}": scores[key] for key in ("frechet", "agreement", "copies")}
    with atomic_file(kept) as partial:
        partial.write_text(json.dumps(result))
    return result


def spread(results: list[dict[str, float]], key: str, digits: int, factor: float = 1.0) -> str:
    """Mean and standard deviation over seeds."""
    values = [factor * result[key] for result in results]
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """The Markdown table."""
    head = "| variant | order | direction | # preds | loss | FD w/o | agreement w/o | FD w/ | agreement w/ | train s "
    lines = [head + "| paper FID w/o | w/ |", "|" + "---|" * 12]
    for row, (variant, order, direction, preds, loss, without, guided) in ROWS.items():
        cells = [
            spread(results[row], "frechet_without", 1),
            spread(results[row], "agreement_without", 1, 100) + " %",
            spread(results[row], "frechet_with", 1),
            spread(results[row], "agreement_with", 1, 100) + " %",
            f"{statistics.mean(result['train_seconds'] for result in results[row]):.0f}",
        ]
        lines.append(
            "| " + " | ".join([variant, order, direction, preds, loss, *cells, f"{without}", f"{guided}"]) + " |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure every row with every seed, then print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path("runs/table1"))
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    results: dict[str, list[dict[str, float]]] = {row: [] for row in ROWS}
    for seed in seeds:
        for row in ROWS:
            results[row].append(measure(row, seed, options.out))
    text = table(results)
    print(text)
    with atomic_file(options.out / "table1.md") as partial:
        partial.write_text(text + "\n")


if __name__ == "__main__":
    main()
