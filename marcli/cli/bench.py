"""`marcli bench`."""

from marcli.cli.options import AsJson, Gpus, NumProcesses, Precision, RunAndOverrides
from marcli.errors import MarcliError


def bench(
    arguments: RunAndOverrides = None,
    gpus: Gpus = "auto",
    processes: NumProcesses = 1,
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure speed and quality against the number of steps: table, plot, JSON, regression gate."""
    raise MarcliError("bench is not built yet.")
