"""AdamW as one fused routine that also clips, and that leaves everything alone when the gradient is not finite.

Clipping multiplies the gradient by a factor that is known on the device only. The fused routine takes that factor and
the "do nothing" flag as tensors, so a step costs no extra pass over the gradients and never waits for the device.
"""

import inspect

import torch
from torch import Tensor, nn

from marcli.recipe.train import Train


class AdamW(torch.optim.AdamW):
    """PyTorch's, whose methods would import the compiler first, for seconds, only to keep out of what it compiles."""

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def decayed_names(model: nn.Module) -> set[str]:
    """Return the parameters that decay: all but 1-D ones (such as biases) and the whole head, as published."""
    head = {id(parameter) for parameter in model.head_parameters()}
    return {name for name, parameter in model.named_parameters() if parameter.ndim > 1 and id(parameter) not in head}


def build_optimizer(model: nn.Module, train: Train) -> AdamW:
    """Return AdamW over `model`; its learning rate is set before every step."""
    decayed = decayed_names(model)
    groups = [
        {"params": [p for n, p in model.named_parameters() if n in decayed], "weight_decay": train.weight_decay},
        {"params": [p for n, p in model.named_parameters() if n not in decayed], "weight_decay": 0.0},
    ]
    return AdamW([g for g in groups if g["params"]], lr=train.lr, betas=train.betas, fused=True)


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Return the L2 norm of all gradients as a float32 scalar on their device."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)


def apply_step(optimizer: AdamW, *, learning_rate: float, norm: Tensor, largest_norm: float, skip: Tensor) -> None:
    """Take one step with the gradient clipped to `largest_norm`; nothing changes where `skip` (float 0/1) is 1."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.grad_scale = (norm / largest_norm).clamp(min=1.0)  # the routine divides by it
    optimizer.found_inf = skip
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
