"""A run folder on disk, as training leaves it, with random weights."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from marcli.recipe.reader import write_recipe
from marcli.recipe.schema import Recipe
from marcli.tokenizer.build import build_tokenizer, save_tokenizer
from tests.model import tiny


def write_run(folder: Path, recipe: Recipe) -> Path:
    """Write recipe.yaml, weights.safetensors (ema is seed 0, raw is seed 1) and the tokenizer."""
    folder.mkdir(parents=True)
    write_recipe(recipe, folder / "recipe.yaml")
    tensors: dict[str, torch.Tensor] = {}
    for prefix, seed in (("ema", 0), ("raw", 1)):
        state = tiny.model(recipe, seed).state_dict()
        tensors |= {f"{prefix}.{name}": tensor.clone() for name, tensor in state.items()}
    save_file(tensors, folder / "weights.safetensors")
    save_tokenizer(build_tokenizer(recipe, folder=None), folder / "tokenizer", recipe=recipe)
    return folder
