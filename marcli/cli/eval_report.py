"""What `eval-fid` leaves behind: a JSON record per set of pictures and a table for people."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from marcli.bench.report import print_whole
from marcli.metrics.evaluate import PAPER_NUM, EvalResult, summarize
from marcli.runtime.atomic import atomic_file

TITLES = {
    "inception_score": "Inception Score",
    "precision": "precision",
    "recall": "recall",
    "kid": "KID",
}


def write_report(results: Sequence[EvalResult], folder: Path) -> tuple[list[str], dict]:
    """Write each result beside its features, print the table, and return the last lines and the whole record."""
    files = [write_result(result, folder) for result in results]
    summary = summarize(results)
    print_whole(table_of(results, summary))
    first = results[0]
    lines = [f"warning: {text}" for text in dict.fromkeys(text for result in results for text in result.warnings)]
    if first.protocol["features"] == "inception" and first.num_images != PAPER_NUM:
        lines.append(
            f"Quick protocol: {first.num_images:,} pictures. {first.distance_name} does not compare with FID-50k."
        )
    lines.append(f"Reference: {first.reference['name']} (sha256 {first.reference['sha256'][:16]}...)")
    lines += [f"Written: {path}" for path in files]
    record = {
        "distance_name": first.distance_name,
        "num_images": first.num_images,
        "metrics": {name: values["mean"] for name, values in summary.items()},
        "spread": {name: values["spread"] for name, values in summary.items()},
        "seeds": [result.source.get("seed") for result in results],
        "results": [result.record() for result in results],
        "files": files,
    }
    return lines, record


def write_result(result: EvalResult, folder: Path) -> Path:
    """Write one result under a name that says what it is, with a hash of how it was made."""
    record = result.record()
    how = json.dumps([record[part] for part in ("protocol", "reference", "source")], sort_keys=True, default=str)
    name = re.sub(r"[^a-z0-9.]+", "-", result.distance_name.lower())
    seed = f"-seed{result.source['seed']}" if "seed" in result.source else ""
    path = folder / f"{name}{seed}-{hashlib.sha256(how.encode()).hexdigest()[:8]}.json"
    with atomic_file(path) as incomplete:
        incomplete.write_text(json.dumps(record, indent=1, default=str, allow_nan=False) + "\n")
    return path


def table_of(results: Sequence[EvalResult], summary: dict[str, dict[str, float]]) -> Table:
    """Return a table with a row per metric, and the spread over seeds where there are several."""
    several = len(results) > 1
    table = Table("metric", "value", *(["spread"] if several else []))
    for name, values in summary.items():
        if name.endswith("_std"):
            continue
        title = results[0].distance_name if name == "fid" else TITLES[name]
        digits = {"precision": 4, "recall": 4, "kid": 6}.get(name, 2)
        cells = [f"{values['mean']:.{digits}f}"]
        if several:
            cells.append(f"{values['spread']:.{digits}f} over {len(results)} seeds")
        elif f"{name}_std" in summary:
            cells[0] += f" +- {summary[f'{name}_std']['mean']:.{digits}f}"
        table.add_row(title, *cells)
    return table
