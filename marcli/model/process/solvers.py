"""Solvers of the reverse process: the paper's ancestral sampling, and two of its probability flow ODE.

An ODE step is x_{t-1} = a x + b x0 + c (x0 - previous x0). DDIM (2010.02502, eta = 0) has c = 0; DPM-Solver++ 2M
(2211.01095, algorithm 2) extrapolates x0 in half log-SNR with c. Both end at x0 itself and use no noise after the
starting one, which the temperature scales. The second order needs timesteps evenly spaced in half log-SNR:
with evenly spaced ones its last steps extrapolate far beyond what they know.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from marcli.model.process.gaussian import GaussianProcess, ReverseStep, keep, reverse_sample


@dataclass(frozen=True)
class OdeStep:
    """Constants of one ODE step, as Python floats."""

    from_x: float
    from_x0: float
    from_change: float


class Ancestral:
    """Draws x_{t-1} from p(x_{t-1} | x_t)."""

    def __init__(self, process: GaussianProcess, *, temperature: float, clip: float | None) -> None:
        self.temperature, self.clip = temperature, clip

    def start(self, noise: Tensor) -> Tensor:
        """x at the noisiest step."""
        return noise

    def step(self, i: int, step: ReverseStep, x: Tensor, eps: Tensor, variance: Tensor, noise: Tensor) -> Tensor:
        """x after the i-th of the steps."""
        return reverse_sample(step, x, eps, variance, noise, self.temperature, self.clip)


class Ode:
    """Follows the probability flow ODE; keeps the last x0 between the steps of one generation."""

    def __init__(self, process: GaussianProcess, *, order: int, temperature: float, clip: float | None) -> None:
        self.temperature, self.clip = temperature, clip
        self.steps = ode_steps(process, order)
        self.last_x0: Tensor | None = None

    def start(self, noise: Tensor) -> Tensor:
        """x at the noisiest step."""
        return self.temperature * noise

    def step(self, i: int, step: ReverseStep, x: Tensor, eps: Tensor, variance: Tensor, noise: Tensor) -> Tensor:
        """x after the i-th of the steps."""
        x0 = step.x0_from_x * x - step.x0_from_eps * eps
        if self.clip is not None:
            x0 = x0.clamp(-self.clip, self.clip)
        ode, last_x0, self.last_x0 = self.steps[i], self.last_x0, x0
        x = ode.from_x * x + ode.from_x0 * x0
        if ode.from_change and last_x0 is not None:
            x = x + ode.from_change * (x0 - last_x0)
        return x


def ode_steps(process: GaussianProcess, order: int) -> list[OdeStep]:
    """Constants of every step, the noisiest first; the first and the last one are of order 1."""
    alphas, sigmas = process.tables["x_from_x0"].flip(0).tolist(), process.tables["x_from_noise"].flip(0).tolist()
    snr = half_log_snr(process).flip(0).tolist()
    steps: list[OdeStep] = []
    for i, (alpha, sigma) in enumerate(zip(alphas, sigmas, strict=True)):
        if i + 1 == len(alphas):
            steps.append(OdeStep(0.0, 1.0, 0.0))
            continue
        next_alpha, next_sigma = alphas[i + 1], sigmas[i + 1]
        from_x0 = next_alpha - next_sigma * alpha / sigma
        change = 0.0
        if order == 2 and i > 0:
            change = from_x0 * (snr[i + 1] - snr[i]) / (2 * (snr[i] - snr[i - 1]))
        steps.append(OdeStep(next_sigma / sigma, from_x0, change))
    return steps


def half_log_snr(process: GaussianProcess) -> Float[Tensor, " steps"]:
    """lambda = log(alpha / sigma) of every index, in which DPM-Solver's steps are measured."""
    return (process.tables["x_from_x0"] / process.tables["x_from_noise"]).log()


@lru_cache(maxsize=64)
def process_for(solver: str, process: GaussianProcess, num_steps: int, max_timestep: int) -> GaussianProcess:
    """The process at the timesteps that a solver visits, at most `num_steps`: evenly spaced in time, or in half
    log-SNR for the second order."""
    if solver != "dpm++2m":
        return process.respaced(num_steps, max_timestep)
    snr = half_log_snr(process)
    targets = torch.linspace(snr[max_timestep].item(), snr[0].item(), num_steps, dtype=snr.dtype)
    nearest = (snr[: max_timestep + 1] - targets.unsqueeze(1)).abs().argmin(1)
    return keep(process, set(nearest.tolist()))


def make_solver(name: str, process: GaussianProcess, *, temperature: float, clip: float | None) -> Ancestral | Ode:
    """The solver called 'ancestral', 'ddim' or 'dpm++2m', fresh for one generation."""
    if name == "ancestral":
        return Ancestral(process, temperature=temperature, clip=clip)
    return Ode(process, order={"ddim": 1, "dpm++2m": 2}[name], temperature=temperature, clip=clip)
