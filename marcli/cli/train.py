"""`marcli train`."""

from marcli.cli.options import AsJson, DryRun, Gpus, NumProcesses, Overrides, Precision, RecipeFile
from marcli.errors import MarcliError
from marcli.recipe.reader import read_recipe


def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    gpus: Gpus = "auto",
    processes: NumProcesses = 1,
    precision: Precision = "auto",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train a recipe; the same command resumes."""
    read_recipe(recipe, overrides or [])
    raise MarcliError("train is not built yet.")
