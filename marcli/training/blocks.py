"""Speed and memory applied to a model's blocks from outside; the model's own code knows nothing of either."""

from collections.abc import Iterator
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the members of every list of layers in `model`."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            yield from module


def checkpoint_activations(model: nn.Module) -> None:
    """Keep only the inputs of each block in the forward pass and compute the rest again in the backward pass."""
    for block in blocks(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compile_blocks(model: nn.Module) -> None:
    """Compile each block; equal blocks share their code, and names in the state dict stay as they are."""
    for block in blocks(model):
        block.compile()
