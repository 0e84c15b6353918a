"""Speed and memory applied to a model's blocks from outside; the model's own code knows nothing of either."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from marcli.model.head.denoiser import DenoisingMLP
from marcli.recipe.train import Train
from marcli.sampling.engine.compiled import compile_parts

WORTH_COMPILING = 10_000  # steps; compiling takes a minute or two, and gives back some milliseconds of each step


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the members of every list of layers in `model`; lists inside of them belong to their block."""
    for child in model.children():
        yield from child if isinstance(child, nn.ModuleList) else blocks(child)


def checkpoint_activations(model: nn.Module) -> None:
    """Keep only the inputs of each block in the forward pass and compute the rest again in the backward pass."""
    for block in blocks(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compiling_pays(train: Train, device: torch.device, total: int) -> bool:
    """Whether the blocks of a run of `total` steps are compiled: as the recipe says, else for long work on a GPU."""
    if train.compile is not None:
        return train.compile
    return device.type == "cuda" and total >= WORTH_COMPILING


def compile_blocks(model: nn.Module) -> None:
    """Compile each block, and a denoising MLP as a whole; names in the state dict stay as they are.

    Equal blocks share their code. Where compiling fails they stay as they are, and one line says why.
    """
    compile_parts(compilable(model))


def compilable(model: nn.Module) -> Iterator[nn.Module]:
    """Yield what is compiled: of a denoising MLP half the time passes between its blocks."""
    for child in model.children():
        if isinstance(child, DenoisingMLP):
            yield child
        else:
            yield from child if isinstance(child, nn.ModuleList) else compilable(child)
