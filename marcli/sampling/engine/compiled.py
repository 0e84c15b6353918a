"""Compiled code for the parts of the fast engine that consist of many small kernels: torch.compile, once for all sizes,
and Triton kernels written by hand where that still leaves too many.
"""

import importlib.util
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

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


def add_kernels(body: Body) -> None:
    """Give a body the kernels for few rows, where there is a Triton to make them."""
    if importlib.util.find_spec("triton") is not None:
        body.forward = FewRowsOrMore(body)


def compilable(model: nn.Module) -> Iterator[nn.Module]:
    """The parts of a fast twin that are worth compiling: both halves of a diffusion step, the transformer's blocks."""
    return (part for part in model.modules() if isinstance(part, Body | Update | FastBlock))


class FastOrPlain:
    """A fast function, or for good the plain one where its first call fails; one line per kind of function says so."""

    told: ClassVar[set[str]] = set()

    def __init__(self, fast: Callable[..., Any], plain: Callable[..., Any], *, without: str) -> None:
        """`without` says what is missing when `plain` takes over."""
        self.run, self.plain, self.without = fast, plain, without
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
            if self.without not in FastOrPlain.told:
                FastOrPlain.told.add(self.without)
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                log.warning(f"going on without {self.without}: {reason}")
        self.settled = True
        return result


class CompiledOrPlain(FastOrPlain):
    """A function, compiled at its first call for tensors of any size.

    Its random numbers are those of PyTorch's own kernels: the same as without compiling, and drawn faster, four per
    call of their generator, which Inductor's kernels call for every number.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        compiled = torch.compile(function, dynamic=True, options={"fallback_random": True})
        super().__init__(compiled, function, without="torch.compile")


class FewRowsOrMore:
    """A body's forward pass: kernels of their own where its rows are few, what it was before for more of them."""

    def __init__(self, body: Body) -> None:
        from marcli.sampling.engine.few_rows import FewRows

        few = FewRows(body)
        self.takes = few.takes
        self.few, self.more = FastOrPlain(few, body.forward, without="kernels for few rows"), body.forward

    def __call__(self, x: Tensor, modulations: list[Tensor]) -> Tensor:
        return (self.few if self.takes(modulations) else self.more)(x, modulations)
