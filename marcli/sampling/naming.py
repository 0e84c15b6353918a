"""What a RUN, an engine and weights may be called, what to answer to any other name, and what of a run can be changed.

Nothing here imports torch, so that a dry run is quick.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from marcli.errors import UsageError
from marcli.pretrained.published import MODELS

EngineName = Literal["auto", "plain", "fast"]
Weights = Literal["ema", "raw"]
FOREIGN = (".pth", ".pt", ".ckpt", ".bin")


def unknown(spec: str, path: Path) -> str:
    """Return why `spec` names nothing, and what could have been meant."""
    if path.is_file():
        return f"{spec} is not a weights file: give a .safetensors, or a published {', '.join(FOREIGN)} file."
    if (Path("runs") / spec).is_dir():
        return f"There is no {spec}. Did you mean runs/{spec}?"
    weights = sorted(Path("runs").glob("*/weights.safetensors"))
    runs = [str(each.parent) for each in weights if each.with_name("recipe.yaml").is_file()]
    known = ", ".join([*runs[:5], *MODELS])
    return f"There is no run, weights file or published name {spec}. Known here: {known}; or hub:user/name."


def run_of_checkpoint(path: Path) -> Path | None:
    """Return the run in whose checkpoints a file lies; None for any other file."""
    folder = path.absolute().parent
    is_part = folder.parent.name == "checkpoints" and (folder / "state.json").is_file()
    return Path(os.path.relpath(folder.parent.parent)) if is_part else None


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise UsageError for a key that belongs to training."""
    for override in overrides:
        if not override.startswith("sample."):
            raise UsageError(f"{override}: only sample.* can be changed for trained weights; the rest comes with them.")
