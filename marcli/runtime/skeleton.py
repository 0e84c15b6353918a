"""Modules without values: names and shapes to count, or to give weights to.

On the meta device torch takes seconds to import what it needs for drawing random numbers, only to draw none. Here
nothing is asked to draw.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

DRAWS = frozenset({"normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_"})


class NothingDrawn(TorchFunctionMode):
    """Leaves a tensor as it is where its values would be drawn."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", None) in DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def skeletons() -> Iterator[None]:
    """Inside, modules are made on the meta device: every name and shape, no values, no memory, no time."""
    with torch.device("meta"), NothingDrawn():
        yield
