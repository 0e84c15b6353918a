"""torch.compile for the parts of the fast engine that are many small kernels: one compilation for all sizes."""

import logging
from collections.abc import Iterator

import torch
from torch import nn

from marcli.sampling.engine.denoise import Body, GuidedStep
from marcli.sampling.engine.transformer import FastBlock

MOST_VARIANTS = 32  # of one part: with and without guidance, one row or more, the first step's tensors, the last step

WORTH_COMPILING = 32  # batches; compiling takes about a minute, a batch between half a second and five

log = logging.getLogger("marcli")


def compiling_pays(num_batches: int) -> bool:
    """Whether a GPU that generates so many batches gets back the time that compiling takes."""
    return num_batches >= WORTH_COMPILING


def compile_parts(model: nn.Module) -> None:
    """Compile both halves of a diffusion step and the transformer's blocks in place; what fails stays as it is."""
    torch._dynamo.config.recompile_limit = max(MOST_VARIANTS, torch._dynamo.config.recompile_limit)
    for part in compilable(model):
        part.forward = CompiledOrPlain(part)


def compilable(model: nn.Module) -> Iterator[nn.Module]:
    """The parts worth compiling."""
    return (part for part in model.modules() if isinstance(part, Body | GuidedStep | FastBlock))


class CompiledOrPlain:
    """A module's forward, compiled at its first call; plain from then on if that fails."""

    told = False

    def __init__(self, module: nn.Module) -> None:
        self.plain = module.forward
        self.run = torch.compile(module.forward, dynamic=True)

    def __call__(self, *args: object, **kwargs: object) -> object:
        try:
            return self.run(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise  # a smaller batch may fit
        except Exception as error:  # a missing compiler, driver or kernel: its kinds are not documented
            if self.run is self.plain:
                raise
            self.run = self.plain
            if not CompiledOrPlain.told:
                CompiledOrPlain.told = True
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                log.warning(f"sampling goes on without torch.compile: {reason}")
            return self.plain(*args, **kwargs)
