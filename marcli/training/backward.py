"""The forward and backward pass of a part of a batch: as autograd runs it, or recorded.

For the small matrices of these models the host takes longer to launch the kernels of a step than a fast GPU to run
them. Long runs of one process therefore record both passes as CUDA graphs, one per number of known tokens; among
several processes the gradients travel during the backward pass, which a recording would not let them.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from marcli.model.head.base import Draws
from marcli.recipe.train import Train
from marcli.runtime.accelerator import Processes
from marcli.runtime.graphs import MEMORY_KEPT_FREE, Capture, CudaGraphs, Recorded, Replay
from marcli.training.blocks import compiling_pays

log = logging.getLogger("marcli")


class Backward(Protocol):
    """Computes the gradient of a part of a batch."""

    def __call__(
        self, latents: Tensor, labels: Tensor, draws: Draws, *, num_known: int, share: float, first: bool
    ) -> Tensor:
        """Add the gradient of `share` times the mean loss to the parameters'; return that product, detached.

        The `first` part of a step finds no gradients.
        """


class PlainBackward:
    """As autograd does it."""

    def __init__(self, forward: nn.Module) -> None:
        self.forward = forward

    def __call__(
        self, latents: Tensor, labels: Tensor, draws: Draws, *, num_known: int, share: float, first: bool
    ) -> Tensor:
        loss = self.forward(latents, labels, draws, num_known).float().mean() * share
        loss.backward()
        return loss.detach()


class RecordedBackward:
    """The same from recordings; the gradients lie where every recording writes them."""

    def __init__(self, forward: nn.Module, parameters: Sequence[nn.Parameter], capture: Capture) -> None:
        self.parameters = parameters
        self.gradients = [torch.zeros_like(parameter) for parameter in parameters]
        self.recorded = Recorded(partial(run_part, forward, parameters, self.gradients), capture)

    def __call__(
        self, latents: Tensor, labels: Tensor, draws: Draws, *, num_known: int, share: float, first: bool
    ) -> Tensor:
        tensors, setting = [latents, labels, *draws.values()], (tuple(draws), num_known, share, first)
        try:
            loss = self.recorded(tensors, setting)
        except torch.OutOfMemoryError:
            if not self.recorded.recordings:
                raise
            loss = None
        if loss is None:  # not in the handler, where the error still holds what it was raised over
            log.warning("the memory is too small for CUDA graphs beside what is not recorded: going on without them")
            self.recorded.give_up()
            loss = self.recorded(tensors, setting)
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return loss


class StepGraphs(CudaGraphs):
    """CUDA graphs, given that their memory fits beside that of what is not recorded yet."""

    def __init__(self) -> None:
        super().__init__()
        self.fits = False

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        if not self.fits:
            torch.cuda.empty_cache()
            check_room()
            self.fits = True
        return super().__call__(function)


def check_room() -> None:
    """Raise MemoryError unless what a step takes for itself, and then gives back, is free more than twice."""
    free, total = torch.cuda.mem_get_info()
    step = torch.cuda.max_memory_reserved() - torch.cuda.memory_reserved()
    if free < 2 * step + MEMORY_KEPT_FREE * total:
        raise MemoryError(f"a step takes {step / 2**30:.1f} of {free / 2**30:.1f} free GiB of GPU memory")


def run_part(
    forward: nn.Module,
    parameters: Sequence[nn.Parameter],
    gradients: Sequence[Tensor],
    tensors: Sequence[Tensor],
    setting: tuple[tuple[str, ...], int, float, bool],
) -> Tensor:
    """What is recorded; nothing but its last operation changes `gradients`, so it can be run again where it failed."""
    names, num_known, share, first = setting
    latents, labels, *draws = tensors
    loss = forward(latents, labels, dict(zip(names, draws, strict=True)), num_known).float().mean() * share
    made = torch.autograd.grad(loss, parameters, materialize_grads=True)
    (torch._foreach_copy_ if first else torch._foreach_add_)(gradients, made)
    return loss.detach()


def build_backward(forward: nn.Module, model: nn.Module, train: Train, processes: Processes, *, total: int) -> Backward:
    """The fastest for a run of `total` steps here."""
    if not recording_pays(train, processes, total):
        return PlainBackward(forward)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return RecordedBackward(forward, parameters, StepGraphs())


def recording_pays(train: Train, processes: Processes, total: int) -> bool:
    """Whether to record: where compiling pays, too, on the only GPU, and where memory is not what is short."""
    alone = processes.device.type == "cuda" and processes.world_size == 1
    return alone and not train.activation_checkpointing and compiling_pays(train, processes.device, total)
