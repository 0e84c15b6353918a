"""The one place where a system, a device and a name become an engine."""

import copy
from typing import Literal

import torch

from marcli.sampling.engine.base import Engine
from marcli.sampling.engine.plain import PlainEngine
from marcli.sampling.system import System

EngineName = Literal["auto", "plain", "fast"]


def build_engine(
    system: System, *, name: EngineName, device: torch.device, precision: Literal["fp32", "bf16"]
) -> Engine:
    """Return an engine on `device`; the system's own model is left as it is.

    'auto' is the fastest lossless engine that can run this model here.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = system.model
    if next(model.parameters()).dtype != dtype or next(model.parameters()).device != device:
        model = copy.deepcopy(model).to(device=device, dtype=dtype)
    model.eval().requires_grad_(False)
    if system.recipe.model.backbone.kind == "dit":
        from marcli.sampling.engine.dit import DiTEngine

        return DiTEngine(model, system.recipe)
    return PlainEngine(model, system.recipe)
