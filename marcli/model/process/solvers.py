"""Solvers of the reverse process: the paper's ancestral sampling, and two that follow its probability-flow ODE.

A new solver gets a name in the recipe (`sample.approximate.solver`), a case in the functions at the end of this file,
and its constants in `marcli/sampling/engine/update.py`. It must need one network call per step, since the loops around
it make one; Heun's method, which needs two, does not fit.

An ODE step is x_{t-1} = from_x x + from_x0 x0 + from_change (x0 - previous x0). In DDIM (2010.02502, eta = 0)
`from_change` is 0; DPM-Solver++ 2M (2211.01095, algorithm 2) uses it to extrapolate x0 in half log-SNR. Both end at x0
itself and use no noise but the starting one, which the temperature scales. The second order needs timesteps evenly
spaced in half log-SNR: with timesteps evenly spaced in time its last steps extrapolate far beyond what they know.
"""

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from marcli.model.process.gaussian import GaussianProcess, ReverseStep, keep, reverse_sample


@dataclass(frozen=True)
class OdeStep:
    """Constants of one ODE step, as Python floats."""

    index: int
    timestep: int
    x0_from_x: float
    x0_from_eps: float
    from_x: float
    from_x0: float
    from_change: float


class Ancestral:
    """Draws x_{t-1} from p(x_{t-1} | x_t)."""

    def __init__(self, *, temperature: float, clip: float | None) -> None:
        self.temperature, self.clip = temperature, clip

    def start(self, noise: Tensor) -> Tensor:
        """x at the noisiest step."""
        return noise

    def step(self, step: ReverseStep, x: Tensor, eps: Tensor, variance: Tensor, noise: Tensor) -> Tensor:
        """x after `step`."""
        return reverse_sample(step, x, eps, variance, noise, self.temperature, self.clip)


class Ode:
    """Follows the probability flow ODE; keeps the last x0 between the steps of one generation."""

    def __init__(self, *, temperature: float, clip: float | None) -> None:
        self.temperature, self.clip = temperature, clip
        self.last_x0: Tensor | None = None

    def start(self, noise: Tensor) -> Tensor:
        """x at the noisiest step."""
        return self.temperature * noise

    def step(self, step: OdeStep, x: Tensor, eps: Tensor, variance: Tensor, noise: Tensor) -> Tensor:
        """x after `step`."""
        x0 = step.x0_from_x * x - step.x0_from_eps * eps
        if self.clip is not None:
            x0 = x0.clamp(-self.clip, self.clip)
        x = step.from_x * x + step.from_x0 * x0
        if self.last_x0 is not None:
            x = x + step.from_change * (x0 - self.last_x0)
        self.last_x0 = x0
        return x


Solver = Ancestral | Ode
SolverStep = ReverseStep | OdeStep


def ode_steps(process: GaussianProcess, order: int) -> list[OdeStep]:
    """Constants of every step, the noisiest first; the first and the last one are of order 1."""
    alphas, sigmas = process.tables["x_from_x0"].flip(0).tolist(), process.tables["x_from_noise"].flip(0).tolist()
    snr = half_log_snr(process).flip(0).tolist()
    steps: list[OdeStep] = []
    for i, step in enumerate(process.reverse_steps()):
        from_x, from_x0, from_change = 0.0, 1.0, 0.0
        if step.index > 0:
            from_x = sigmas[i + 1] / sigmas[i]
            from_x0 = alphas[i + 1] - from_x * alphas[i]
            if order == 2 and i > 0:
                from_change = from_x0 * (snr[i + 1] - snr[i]) / (2 * (snr[i] - snr[i - 1]))
        steps.append(OdeStep(step.index, step.timestep, step.x0_from_x, step.x0_from_eps, from_x, from_x0, from_change))
    return steps


def half_log_snr(process: GaussianProcess) -> Float[Tensor, " steps"]:
    """lambda = log(alpha / sigma) of every index, in which DPM-Solver's steps are measured."""
    return (process.tables["x_from_x0"] / process.tables["x_from_noise"]).log()


@cache  # others keep tables by the process that it returns
def process_for(solver: str, process: GaussianProcess, num_steps: int, max_timestep: int) -> GaussianProcess:
    """The process at the timesteps that a solver visits, at most `num_steps`: evenly spaced in time, or in half
    log-SNR for the second order."""
    if solver != "dpm++2m":
        return process.respaced(num_steps, max_timestep)
    snr = half_log_snr(process)
    targets = torch.linspace(snr[max_timestep].item(), snr[0].item(), num_steps, dtype=snr.dtype)
    nearest = (snr[: max_timestep + 1] - targets.unsqueeze(1)).abs().argmin(1)
    return keep(process, set(nearest.tolist()))


def num_draws(solver: str, process: GaussianProcess, num_steps: int, max_timestep: int) -> int:
    """How many draws of noise a token needs, beside its starting noise, for `num_steps` steps of a solver or fewer.

    A solver that adds no noise has draws as well; it leaves them unused.
    """
    if solver == "dpm++2m":
        return num_steps  # its distinct timesteps may be more where fewer are asked for
    return len(process_for(solver, process, num_steps, max_timestep))


@cache
def solver_steps(name: str, process: GaussianProcess) -> list[ReverseStep] | list[OdeStep]:
    """Constants of the steps of the solver called 'ancestral', 'ddim' or 'dpm++2m', the noisiest first."""
    if name == "ancestral":
        return process.reverse_steps()
    return ode_steps(process, order={"ddim": 1, "dpm++2m": 2}[name])


def make_solver(name: str, *, temperature: float, clip: float | None) -> Solver:
    """The solver of that name, fresh for one generation."""
    return (Ancestral if name == "ancestral" else Ode)(temperature=temperature, clip=clip)
