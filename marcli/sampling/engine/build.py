"""The one place where a system, a device and a name become an engine."""

from typing import Literal

import torch

from marcli.errors import UsageError
from marcli.sampling.engine.base import Engine
from marcli.sampling.engine.convert import converter, unchanged
from marcli.sampling.engine.fast import FastEngine
from marcli.sampling.engine.plain import PlainEngine
from marcli.sampling.naming import EngineName
from marcli.sampling.system import System


def build_engine(
    system: System,
    *,
    name: EngineName,
    device: torch.device,
    precision: Literal["fp32", "bf16"],
    compiled: bool = False,
) -> Engine:
    """Return an engine on `device`; the system's own model is left as it is.

    'auto' is the fastest exact engine that can run this model here; 'fast' raises UsageError where there is none.
    `compiled` is for long work (see `compiling_pays`): on a GPU its first batch takes a minute or so longer.
    """
    fast = name != "plain" and has_fast_engine(system, device)
    if name == "fast" and not fast:
        raise UsageError("--engine fast has nothing for a DiT on a CPU: use auto or plain.")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = system.model.eval().requires_grad_(False)
    first = next(model.parameters())
    convert = unchanged if (first.device, first.dtype) == (device, dtype) else converter(device, dtype)
    if is_dit(system):
        from marcli.sampling.engine.dit import DiTEngine, FastDiTEngine

        if fast:
            return FastDiTEngine(converter(device, dtype)(model), system.recipe, compiled=compiled)
        return DiTEngine(convert(model), system.recipe)
    if fast:
        return FastEngine(model, system.recipe, convert, compiled=compiled)
    return PlainEngine(convert(model), system.recipe)


def has_fast_engine(system: System, device: torch.device) -> bool:
    """Whether anything makes this system's pictures faster than the plain engine; for a DiT nothing does on a CPU."""
    return device.type == "cuda" or not is_dit(system)


def is_dit(system: System) -> bool:
    """Whether the whole grid is denoised at once."""
    return system.recipe.model.backbone.kind == "dit"
