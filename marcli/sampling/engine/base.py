"""What an engine does: labels and a tape of randomness to latents."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from marcli.model.head.base import HeadSampling
from marcli.recipe.schema import Recipe
from marcli.sampling.engine.checkerboard import checkerboard_schedule
from marcli.sampling.reveal import OnStep
from marcli.sampling.schedule import RevealStep, reveal_schedule
from marcli.sampling.tape import Tape


@runtime_checkable
class Engine(Protocol):
    """One way to generate latents; what it computes depends on labels and tape alone."""

    name: str
    device: torch.device

    def under(self, recipe: Recipe) -> "Engine":
        """The same weights under the sampling settings of another recipe of this model; nothing is copied."""

    def draw_tape(self, *, seed: int, indices: Sequence[int]) -> Tape:
        """All randomness of these pictures, on the CPU."""

    def latents(
        self, *, labels: Int[Tensor, " batch"], tape: Tape, on_step: OnStep | None
    ) -> Shaped[Tensor, "batch channels side side"]:
        """Generate scaled latents (or codes); `on_step` sees what is known after each AR step."""


def head_sampling(recipe: Recipe) -> HeadSampling:
    """The recipe's settings that concern a head."""
    sample = recipe.sample
    return HeadSampling(
        temperature=sample.temperature,
        diffusion_steps=sample.diffusion_steps,
        max_timestep=sample.max_timestep,
        clip_denoised=sample.clip_denoised,
        solver=sample.approximate.solver,
        guidance_refresh=sample.approximate.head_guidance_refresh or 1,
    )


def schedule_of(recipe: Recipe) -> list[RevealStep]:
    """The recipe's AR steps."""
    make = checkerboard_schedule if recipe.sample.approximate.order == "checkerboard" else reveal_schedule
    return make(
        num_tokens=recipe.num_tokens,
        num_steps=recipe.sampling_steps,
        cfg=recipe.sample.cfg,
        cfg_schedule=recipe.sample.cfg_schedule,
    )
