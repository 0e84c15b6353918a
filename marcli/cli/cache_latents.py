"""`marcli cache-latents`."""

from marcli.cli.options import AsJson, DryRun, Gpus, NumProcesses, Overrides, Precision, RecipeFile
from marcli.errors import MarcliError


def cache_latents(
    recipe: RecipeFile,
    overrides: Overrides = None,
    gpus: Gpus = "auto",
    processes: NumProcesses = 1,
    precision: Precision = "auto",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Encode a data set once, both flips, in parallel; the same command resumes."""
    raise MarcliError("cache-latents is not built yet.")
