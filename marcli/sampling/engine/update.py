"""What follows the denoiser's body in a diffusion step: guidance, then the solver's step, in few elementwise products.

The constants of a step are merged in float64 and lie on the device as tensors of one element: Python floats would make
torch.compile start over for each value, and a CPU would convert them at every use.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from marcli.model.process.gaussian import GaussianProcess, ReverseStep
from marcli.model.process.solvers import SolverStep, solver_steps

ALIGNED = 4  # floats from one constant to the next: compiled kernels copy what does not start at 16 bytes


@dataclass(frozen=True)
class MergedStep:
    """x' = from_x x + from_x0 x0, plus exp(log_std + log_std_from_variance v) noise, or from_change (x0 - last x0).

    x0 is x0_from_x x + x0_from_eps eps, clipped; v in [-1, 1] interpolates the log-variance.
    """

    adds_noise: bool
    extrapolates: bool
    x0_from_x: Float[Tensor, ""]
    x0_from_eps: Float[Tensor, ""]
    from_x: Float[Tensor, ""]
    from_x0: Float[Tensor, ""]
    from_change: Float[Tensor, ""]
    log_std: Float[Tensor, ""]
    log_std_from_variance: Float[Tensor, ""]


def merged_steps(
    solver: str, process: GaussianProcess, *, temperature: float, device: torch.device
) -> list[MergedStep]:
    """The steps of a solver, the noisiest first, with their constants on `device`."""
    steps = solver_steps(solver, process)
    table = torch.tensor([constants(step, temperature) for step in steps], device=device)
    table = F.pad(table.unsqueeze(2), (0, ALIGNED - 1))[:, :, 0]
    return [
        MergedStep(
            isinstance(step, ReverseStep) and step.index > 0,
            not isinstance(step, ReverseStep) and step.from_change != 0,
            *row.unbind(),
        )
        for step, row in zip(steps, table, strict=True)
    ]


def constants(step: SolverStep, temperature: float) -> tuple[float, ...]:
    """What a `MergedStep` holds of `step`, in the order of its fields."""
    if not isinstance(step, ReverseStep):
        return (step.x0_from_x, -step.x0_from_eps, step.from_x, step.from_x0, step.from_change, 0.0, 0.0)
    lowest, highest = step.log_variance_min, step.log_variance_max
    log_std = (highest + lowest) / 4 + math.log(temperature), (highest - lowest) / 4
    return (step.x0_from_x, -step.x0_from_eps, step.mean_from_x, step.mean_from_x0, 0.0, *log_std)


class Update(nn.Module):
    """One step of either solver; once compiled it is a single kernel."""

    def forward(
        self,
        step: MergedStep,
        x: Float[Tensor, "rows dim"],
        output: Float[Tensor, "halves rows two_dim"],
        guidance: Float[Tensor, ""],
        noise: Float[Tensor, "rows dim"],
        last_x0: Float[Tensor, "rows dim"] | None,
        clip: float | None,
    ) -> tuple[Float[Tensor, "rows dim"], Float[Tensor, "rows dim"]]:
        """x after `step`, and its x0; a second half of `output` is the unguided one."""
        output = output.float()
        eps, variance = output[0].chunk(2, dim=-1)
        if len(output) == 2:
            eps = torch.lerp(output[1, :, : x.shape[-1]], eps, guidance)
        x0 = torch.addcmul(step.x0_from_x * x, step.x0_from_eps, eps)
        if clip is not None:
            x0 = x0.clamp(-clip, clip)
        x = torch.addcmul(step.from_x * x, step.from_x0, x0)
        if step.adds_noise:
            x = torch.addcmul(x, torch.addcmul(step.log_std, step.log_std_from_variance, variance).exp(), noise)
        if step.extrapolates:
            x = torch.addcmul(x, step.from_change, x0 - last_x0)
        return x, x0
