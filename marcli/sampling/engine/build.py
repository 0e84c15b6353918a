"""The one place where a system, a device and a name become an engine."""

from typing import Literal

import torch

from marcli.errors import UsageError
from marcli.sampling.engine.base import Engine
from marcli.sampling.engine.convert import converter, unchanged
from marcli.sampling.engine.fast import FastEngine
from marcli.sampling.engine.plain import PlainEngine
from marcli.sampling.system import System

EngineName = Literal["auto", "plain", "fast"]


def build_engine(
    system: System,
    *,
    name: EngineName,
    device: torch.device,
    precision: Literal["fp32", "bf16"],
    compiled: bool = False,
) -> Engine:
    """Return an engine on `device`; the system's own model is left as it is.

    'auto' is the fastest lossless engine that can run this model here; 'fast' raises UsageError where there is none.
    `compiled` is for long work (see `compiling_pays`): on a GPU its first batch takes a minute or so longer.
    """
    is_dit = system.recipe.model.backbone.kind == "dit"
    if name == "fast" and is_dit:
        raise UsageError("--engine fast speeds up autoregressive models, and a DiT is not one: use auto or plain.")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = system.model.eval().requires_grad_(False)
    first = next(model.parameters())
    convert = unchanged if (first.device, first.dtype) == (device, dtype) else converter(device, dtype)
    if is_dit:
        from marcli.sampling.engine.dit import DiTEngine

        return DiTEngine(convert(model), system.recipe)
    if name == "plain":
        return PlainEngine(convert(model), system.recipe)
    return FastEngine(model, system.recipe, convert, compiled=compiled)
