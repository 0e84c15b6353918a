"""torch.compile for the parts of the fast engine that are many small kernels: one compilation for all sizes."""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from marcli.sampling.engine.denoise import Body
from marcli.sampling.engine.transformer import FastBlock
from marcli.sampling.engine.update import Update

MOST_VARIANTS = 32  # of one part: with and without guidance, one row or more, the first step's tensors, the last step

WORTH_COMPILING = 32  # batches; compiling takes about a minute, a batch between half a second and five

log = logging.getLogger("marcli")


def compiling_pays(num_batches: int) -> bool:
    """Whether a GPU that generates so many batches gets back the time that compiling takes."""
    return num_batches >= WORTH_COMPILING


def compile_parts(parts: Iterable[nn.Module]) -> None:
    """Compile each part in place; what fails stays as it is."""
    torch._dynamo.config.recompile_limit = max(MOST_VARIANTS, torch._dynamo.config.recompile_limit)
    for part in parts:
        part.forward = CompiledOrPlain(part.forward)


def compilable(model: nn.Module) -> Iterator[nn.Module]:
    """The parts of a fast twin that are worth compiling: both halves of a diffusion step, the transformer's blocks."""
    return (part for part in model.modules() if isinstance(part, Body | Update | FastBlock))


class CompiledOrPlain:
    """A function, compiled at its first call for tensors of any size; plain from then on if that call fails."""

    told = False

    def __init__(self, function: Callable[..., Any]) -> None:
        self.plain = function
        self.run = torch.compile(function, dynamic=True)
        self.settled = False

    def __call__(self, *args: object, **kwargs: object) -> Any:
        if self.settled:  # what is raised from now on is the caller's, such as the end of a recomputation
            return self.run(*args, **kwargs)
        try:
            result = self.run(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise  # a smaller batch may fit
        except Exception as error:  # a missing compiler, driver or kernel: its kinds are not documented
            self.run, result = self.plain, self.plain(*args, **kwargs)
            if not CompiledOrPlain.told:
                CompiledOrPlain.told = True
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                log.warning(f"going on without torch.compile: {reason}")
        self.settled = True
        return result
