"""The weights a run ends with: raw and averaged in one safetensors file."""

import json
from pathlib import Path

from safetensors.torch import save_file

from marcli.recipe.reader import recipe_text
from marcli.recipe.schema import Recipe
from marcli.runtime.atomic import atomic_file
from marcli.training.checkpoint import Trained, to_cpu


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
