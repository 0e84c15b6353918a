"""The weights a run ends with: raw and averaged in one safetensors file, from which a finished run can be known."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from marcli.recipe.reader import recipe_text
from marcli.recipe.schema import Recipe
from marcli.runtime.atomic import atomic_file
from marcli.training.checkpoint import Trained, set_weights, to_cpu


def export_weights(path: Path, trained: Trained, recipe: Recipe, *, step: int) -> None:
    """Write `raw.<name>` and `ema.<name>` for every entry of the model's state dict; the recipe travels inside."""
    raw = to_cpu(trained.model.state_dict())
    averaged = {**raw, **to_cpu(trained.ema.state())}  # buffers are not averaged
    tensors = {f"raw.{name}": tensor for name, tensor in raw.items()}
    tensors |= {f"ema.{name}": tensor for name, tensor in averaged.items()}
    # one key: safetensors writes several in any order, and equal weights should be equal files
    facts = json.dumps({"recipe_text": recipe_text(recipe), "step": step})
    with atomic_file(path) as aside:
        save_file(tensors, aside, metadata={"marcli": facts})


def exported_step(path: Path) -> int | None:
    """Return the optimizer steps taken by the weights at `path`; None where there are none, or not the whole file."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["marcli"])["step"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def load_exported(path: Path, trained: Trained) -> None:
    """Set weights and average to those at `path`; raises MarcliError for those of another model."""
    tensors = load_file(path, device=str(trained.ema.averages[0].device))
    raw, averaged = (
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        for prefix in ("raw.", "ema.")
    )
    set_weights(trained, raw, averaged, source=str(path))
