"""Discrete Gaussian diffusion with learned-range variance (Ho 2020; Nichol & Dhariwal 2021).

Everything here is a function of tables computed once in float64. A process is immutable: `respaced` returns a new one
over fewer timesteps, which remembers the original time of each of its indices.
"""

import math
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import accumulate, repeat

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marcli.model.layers.embed import NUM_TIMESTEPS


@dataclass(frozen=True)
class ReverseStep:
    """Constants of one reverse step, as Python floats so that a loop never waits for a device.

    `index` counts the process's own steps, 0 the cleanest; `timestep` is what the network is told, 0..999.
    """

    index: int
    timestep: int
    x0_from_x: float  # 1 / sqrt(alpha_bar)
    x0_from_eps: float  # sqrt(1 / alpha_bar - 1)
    mean_from_x0: float  # of the posterior q(x_{t-1} | x_t, x_0); DDPM, eq. 7
    mean_from_x: float
    log_variance_min: float  # the posterior's
    log_variance_max: float  # that of q(x_t | x_{t-1}), beta


class GaussianProcess:
    """q(x_t | x_0) and its reverse over `timesteps`, given one beta per timestep."""

    def __init__(self, betas: Float[Tensor, " steps"], timesteps: list[int]) -> None:
        self.betas = betas.double()
        self.timesteps = timesteps

    def __len__(self) -> int:
        return len(self.timesteps)

    def __deepcopy__(self, memo: dict) -> "GaussianProcess":
        """Itself: copies of a model share it, and with it every table computed from it."""
        return self

    @cached_property
    def tables(self) -> dict[str, Tensor]:
        """Float64 tables over the process's indices, on the CPU.

        `x_from_x0` is sqrt(alpha_bar) and `x_from_noise` sqrt(1 - alpha_bar); the others are in `ReverseStep`.
        """
        alpha_bar = torch.cumprod(1.0 - self.betas, dim=0)
        previous = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
        variance = self.betas * (1.0 - previous) / (1.0 - alpha_bar)
        # The posterior variance is 0 at the first index; its logarithm borrows the second one's.
        clipped = torch.cat([variance[1:2], variance[1:]]) if len(self) > 1 else self.betas
        return {
            "x_from_x0": alpha_bar.sqrt(),
            "x_from_noise": (1.0 - alpha_bar).sqrt(),
            "x0_from_x": (1.0 / alpha_bar).sqrt(),
            "x0_from_eps": (1.0 / alpha_bar - 1.0).sqrt(),
            "mean_from_x0": self.betas * previous.sqrt() / (1.0 - alpha_bar),
            "mean_from_x": (1.0 - previous) * (1.0 - self.betas).sqrt() / (1.0 - alpha_bar),
            "log_variance_min": clipped.log(),
            "log_variance_max": self.betas.log(),
        }

    def on(self, device: torch.device) -> dict[str, Tensor]:
        """The tables in float32 on `device`, copied there once."""
        return device_tables(self, device)

    def reverse_steps(self) -> list[ReverseStep]:
        """Constants of every reverse step, from the noisiest index down to 0."""
        names = [name for name in ReverseStep.__dataclass_fields__ if name not in ("index", "timestep")]
        columns = {name: self.tables[name].tolist() for name in names}
        return [
            ReverseStep(index, self.timesteps[index], **{name: columns[name][index] for name in names})
            for index in reversed(range(len(self)))
        ]

    def respaced(self, num_steps: int, max_timestep: int) -> "GaussianProcess":
        """Keep `num_steps` evenly spaced timesteps; those above `max_timestep` become it, merged."""
        return respace(self, num_steps, max_timestep)


def cosine_betas() -> Float[Tensor, " steps"]:
    """Betas of alpha_bar(t) = cos^2((t + 0.008) / 1.008 * pi / 2), at most 0.999 (Improved DDPM, eq. 17)."""

    def alpha_bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    n = NUM_TIMESTEPS
    betas = [min(1.0 - alpha_bar((i + 1) / n) / alpha_bar(i / n), 0.999) for i in range(n)]
    return torch.tensor(betas, dtype=torch.float64, device="cpu")


def linear_betas() -> Float[Tensor, " steps"]:
    """Betas growing linearly from 1e-4 to 0.02 (DDPM, section 4)."""
    return torch.linspace(1e-4, 0.02, NUM_TIMESTEPS, dtype=torch.float64, device="cpu")


@lru_cache(maxsize=4)
def full_process(schedule: str) -> GaussianProcess:
    """The process of 1,000 timesteps with the 'cosine' or 'linear' schedule."""
    betas = {"cosine": cosine_betas, "linear": linear_betas}[schedule]()
    return GaussianProcess(betas, list(range(NUM_TIMESTEPS)))


@cache  # others keep tables by the process that it returns
def respace(process: GaussianProcess, num_steps: int, max_timestep: int) -> GaussianProcess:
    """The process seen only at `num_steps` evenly spaced timesteps, none above `max_timestep`."""
    stride = (len(process) - 1) / max(1, num_steps - 1)
    # Added up as in the published code: what a sum and a product round to decides between 499 and 500.
    spaced = accumulate(repeat(stride, num_steps - 1), initial=0.0)
    return keep(process, {min(round(t), max_timestep) for t in spaced})


def keep(process: GaussianProcess, indices: set[int]) -> GaussianProcess:
    """The process seen only at these indices."""
    kept = sorted(indices)
    alpha_bar = torch.cumprod(1.0 - process.betas, dim=0)[kept]
    previous = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    return GaussianProcess(1.0 - alpha_bar / previous, [process.timesteps[t] for t in kept])


@lru_cache(maxsize=16)
def device_tables(process: GaussianProcess, device: torch.device) -> dict[str, Tensor]:
    """Float32 copies of the tables on `device`."""
    return {name: table.float().to(device) for name, table in process.tables.items()}


def diffuse(
    process: GaussianProcess,
    x0: Float[Tensor, "*#rows dim"],
    t: Int[Tensor, "*rows"],
    noise: Float[Tensor, "*rows dim"],
) -> Float[Tensor, "*rows dim"]:
    """Draw x_t ~ q(x_t | x_0) with the given standard normal noise (DDPM, eq. 4)."""
    tables = process.on(x0.device)
    return tables["x_from_x0"][t].unsqueeze(-1) * x0 + tables["x_from_noise"][t].unsqueeze(-1) * noise


@dataclass(frozen=True)
class Reverse:
    """p(x_{t-1} | x_t): mean, log-variance and the x_0 they imply, all of one shape."""

    mean: Tensor
    log_variance: Tensor
    x0: Tensor


def reverse(
    step: ReverseStep,
    x: Float[Tensor, "*rows dim"],
    eps: Float[Tensor, "*rows dim"],
    variance: Float[Tensor, "*rows dim"],
    clip: float | None,
) -> Reverse:
    """One reverse step; `variance` in [-1, 1] interpolates its log-range (Improved DDPM, eq. 15)."""
    x0 = step.x0_from_x * x - step.x0_from_eps * eps
    if clip is not None:
        x0 = x0.clamp(-clip, clip)
    share = (variance + 1) / 2
    log_variance = share * step.log_variance_max + (1 - share) * step.log_variance_min
    return Reverse(step.mean_from_x0 * x0 + step.mean_from_x * x, log_variance, x0)


def reverse_sample(
    step: ReverseStep,
    x: Float[Tensor, "*rows dim"],
    eps: Float[Tensor, "*rows dim"],
    variance: Float[Tensor, "*rows dim"],
    noise: Float[Tensor, "*rows dim"],
    temperature: float,
    clip: float | None,
) -> Float[Tensor, "*rows dim"]:
    """Draw x_{t-1}; `temperature` scales the noise, and the last step (index 0) adds none."""
    p = reverse(step, x, eps, variance, clip)
    if step.index == 0:
        return p.mean
    return p.mean + temperature * (0.5 * p.log_variance).exp() * noise
