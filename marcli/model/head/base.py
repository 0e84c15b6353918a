"""What every head does: one loss per token in training, one token per z in generation."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Generator, Tensor, nn

Draws = dict[str, Tensor]


@dataclass(frozen=True)
class HeadSampling:
    """The settings of generation that concern a head; what a head has no use for it ignores.

    Attributes:
        temperature: factor on the noise of reverse steps, or divisor of the logits of codes
        diffusion_steps: reverse steps per token, at most 1,000
        max_timestep: latest timestep visited, at most 999
        clip_denoised: bound on |x_0| in latent units, or None
        solver: "ancestral", the paper's, or one of the approximations
        guidance_refresh: diffusion steps from one run of the unconditional half to the next, at least 1
    """

    temperature: float
    diffusion_steps: int
    max_timestep: int
    clip_denoised: float | None
    solver: str
    guidance_refresh: int

    def runs_both(self, num_steps: int) -> list[bool]:
        """Whether the unconditional half runs too, step by step.

        It does at the first diffusion step, at the last, and at every `guidance_refresh`-th counted back from the last.
        """
        return [i == 0 or (num_steps - 1 - i) % self.guidance_refresh == 0 for i in range(num_steps)]


class Head(nn.Module):
    """A model of p(token | z). Randomness is passed in: `draw` in training, `noise` in generation."""

    token_dtype = torch.float32

    def draw(self, generator: Generator, num_hidden: int) -> Draws:
        """All randomness of one image's loss."""
        raise NotImplementedError

    def loss(
        self, z: Float[Tensor, "batch hidden z_dim"], tokens: Shaped[Tensor, "batch hidden dim"], draws: Draws
    ) -> Float[Tensor, "batch hidden"]:
        """One loss per token."""
        raise NotImplementedError

    def noise(
        self, generator: Generator, num_tokens: int, num_steps: int, settings: HeadSampling
    ) -> Float[Tensor, "tokens draws dim"]:
        """The noise tape of one image: what each token consumes when it is revealed.

        `num_steps` are AR steps; under confidence order a token can be drawn at every one of them.
        """
        raise NotImplementedError

    def sample(
        self,
        z: Float[Tensor, "batch wanted z_dim"],
        z_null: Float[Tensor, "batch wanted z_dim"] | None,
        guidance: float,
        noise: Float[Tensor, "batch wanted draws dim"],
        settings: HeadSampling,
    ) -> Shaped[Tensor, "batch wanted dim"]:
        """Draw tokens from p(token | z), guided away from `z_null` when it is given.

        `guidance` 1 is the conditional distribution, more extrapolates away from the unconditional one. `noise` has the
        rows of the tape that belong to these tokens.
        """
        raise NotImplementedError
