"""Bringing a model, or a part of it, to the device and dtype of generation, without holding it twice on the way."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

Convert = Callable[[nn.Module], nn.Module]


def unchanged(module: nn.Module) -> nn.Module:
    """The module itself."""
    return module


def converter(device: torch.device, dtype: torch.dtype) -> Convert:
    """A function that copies a module to `device` and its floating-point tensors to `dtype`."""

    def moved(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device, dtype if tensor.is_floating_point() else tensor.dtype)

    def convert(module: nn.Module) -> nn.Module:
        tensors = {id(each): nn.Parameter(moved(each), requires_grad=False) for each in module.parameters()}
        tensors |= {id(each): moved(each) for each in module.buffers()}
        return copy.deepcopy(module, tensors)  # which takes these for copies that it has made already

    return convert


def without(module: nn.Module, *names: str) -> nn.Module:
    """The module with the same tensors, but without these children."""
    rest = copy.copy(module)
    rest._modules = {name: child for name, child in module._modules.items() if name not in names}
    return rest
