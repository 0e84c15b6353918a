"""`marcli sample`."""

from marcli.cli.options import AsJson, Gpus, NumProcesses, Precision, RunAndOverrides
from marcli.errors import MarcliError


def sample(
    arguments: RunAndOverrides = None,
    gpus: Gpus = "auto",
    processes: NumProcesses = 1,
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Make pictures and a grid with a trained run or published weights."""
    raise MarcliError("sample is not built yet.")
