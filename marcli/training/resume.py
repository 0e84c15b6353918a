"""What may change between the start of a run and its resumption."""

from collections.abc import Iterator

from marcli.errors import UsageError
from marcli.recipe.reader import read_recipe
from marcli.recipe.schema import Recipe
from marcli.runtime.rundir import RunDir

HARMLESS = (
    "name",
    "reported",
    "sample",
    "data.path",  # the images themselves are compared by fingerprint
    "data.latents",
    "data.workers",
    "train.log_every",
    "train.sample_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.trackers",
    "train.nan_policy",
    "train.compile",
    "train.activation_checkpointing",
    "train.micro_batch_size",
)
LENGTHS = ("train.steps", "train.epochs")


def check_same_recipe(recipe: Recipe, run: RunDir) -> None:
    """Raise UsageError, naming the keys, when `run` has trained another recipe; one without a step may change."""
    if not has_trained(run):
        return
    if not run.recipe_path.exists():
        raise UsageError(
            f"{run.path} holds a training whose {run.recipe_path.name} is gone: give that file back, or train in "
            "another folder (--out)"
        )
    before = read_recipe(run.recipe_path, [])
    changes = [
        f"{key} was {old!r} and is now {new!r}"
        for key, old, new in differences(before.model_dump(mode="json"), recipe.model_dump(mode="json"))
        if not allowed(key, recipe)
    ]
    if changes:
        raise UsageError(
            f"the run in {run.path} was started with another recipe: {'; '.join(changes)}. "
            "Give back the old value to resume it, or train the new recipe in another folder (--out)"
        )


def has_trained(run: RunDir) -> bool:
    """Whether there is anything in the run's folder that training made."""
    return run.weights_path.exists() or any(run.checkpoints.glob("step-*"))


def allowed(key: str, recipe: Recipe) -> bool:
    """Return whether `key` may differ; a run can be made longer unless its learning rate depends on the length."""
    if key in LENGTHS:
        return recipe.train.lr_schedule == "constant"
    return any(key == harmless or key.startswith(f"{harmless}.") for harmless in HARMLESS)


def differences(before: object, after: object, prefix: str = "") -> Iterator[tuple[str, object, object]]:
    """Yield (dotted key, old value, new value) for every leaf that differs."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            yield from differences(before.get(key), after.get(key), f"{prefix}.{key}" if prefix else key)
    elif before != after:
        yield prefix, before, after
