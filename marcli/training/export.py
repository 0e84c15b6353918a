"""The weights a run ends with: raw and averaged in one safetensors file."""

from pathlib import Path

from safetensors.torch import save_file

from marcli.recipe.schema import Recipe
from marcli.runtime.atomic import atomic_file
from marcli.training.checkpoint import Trained, to_cpu


def export_weights(path: Path, trained: Trained, recipe: Recipe, *, step: int) -> None:
    """Write `raw.<name>` and `ema.<name>` for every entry of the model's state dict."""
    raw = to_cpu(trained.model.state_dict())
    averaged = {**raw, **to_cpu(trained.ema.state())}  # buffers are not averaged
    tensors = {f"raw.{name}": tensor for name, tensor in raw.items()}
    tensors |= {f"ema.{name}": tensor for name, tensor in averaged.items()}
    metadata = {"recipe": recipe.name, "step": str(step), "ema_decay": str(recipe.train.ema_decay)}
    with atomic_file(path) as aside:
        save_file(tensors, aside, metadata=metadata)
