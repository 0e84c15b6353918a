"""`marcli eval-fid`."""

from marcli.cli.options import AsJson, Gpus, NumProcesses, Precision, RunAndOverrides
from marcli.errors import MarcliError


def eval_fid(
    arguments: RunAndOverrides = None,
    gpus: Gpus = "auto",
    processes: NumProcesses = 1,
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure FID, Inception Score, precision, recall and KID of a run, a folder or an npz."""
    raise MarcliError("eval-fid is not built yet.")
