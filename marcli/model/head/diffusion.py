"""The diffusion head: p(token | z) as a reverse diffusion by a small MLP (section 3)."""

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from marcli.model.head.base import Draws, Head, HeadSampling
from marcli.model.head.denoiser import DenoisingMLP
from marcli.model.process.gaussian import diffuse, full_process
from marcli.model.process.losses import diffusion_loss
from marcli.model.process.solvers import make_solver, num_draws, process_for, solver_steps


class DiffusionHead(Head):
    """Diffusion loss in training (eq. 2), ancestral sampling with temperature in generation (eq. 3)."""

    def __init__(self, *, token_dim: int, z_dim: int, width: int, depth: int, schedule: str, noise_draws: int) -> None:
        super().__init__()
        self.token_dim = token_dim
        self.noise_draws = noise_draws
        self.process = full_process(schedule)
        self.denoiser = DenoisingMLP(token_dim=token_dim, z_dim=z_dim, width=width, depth=depth)

    def draw(self, generator: Generator, num_hidden: int) -> Draws:
        """Timesteps and noise: `noise_draws` of each per hidden token."""
        shape = (num_hidden, self.noise_draws)
        return {
            "t": torch.randint(len(self.process), shape, generator=generator),
            "noise": torch.randn(*shape, self.token_dim, generator=generator),
        }

    def loss(
        self, z: Float[Tensor, "batch hidden z_dim"], tokens: Float[Tensor, "batch hidden dim"], draws: Draws
    ) -> Float[Tensor, "batch hidden"]:
        """Squared error of the noise plus the variational bound, averaged over the draws of a token."""
        t, noise = draws["t"], draws["noise"]  # [batch, hidden, draws], [batch, hidden, draws, dim]
        x0 = tokens.unsqueeze(2).expand_as(noise)
        x = diffuse(self.process, x0, t, noise)
        prediction = self.denoiser(x, t, z.unsqueeze(2)).float()
        mse, vb = diffusion_loss(self.process, x0, x, t, noise, prediction)
        return (mse + vb).mean(2)

    def noise(
        self, generator: Generator, num_tokens: int, num_steps: int, settings: HeadSampling
    ) -> Float[Tensor, "tokens draws dim"]:
        """Starting noise, then one draw per reverse step, for every token."""
        draws = num_draws(settings.solver, self.process, settings.diffusion_steps, settings.max_timestep)
        return torch.randn(num_tokens, 1 + draws, self.token_dim, generator=generator)

    def sample(
        self,
        z: Float[Tensor, "batch wanted z_dim"],
        z_null: Float[Tensor, "batch wanted z_dim"] | None,
        guidance: float,
        noise: Float[Tensor, "batch wanted draws dim"],
        settings: HeadSampling,
    ) -> Float[Tensor, "batch wanted dim"]:
        """Run the reverse process; guidance acts on eps, the variance is the conditional one's."""
        process = process_for(settings.solver, self.process, settings.diffusion_steps, settings.max_timestep)
        solver = make_solver(settings.solver, temperature=settings.temperature, clip=settings.clip_denoised)
        x = solver.start(noise[:, :, 0])
        steps = solver_steps(settings.solver, process)
        for i, (step, both) in enumerate(zip(steps, settings.runs_both(len(steps)), strict=True)):
            t = torch.full((), step.timestep, device=z.device)
            both = both and z_null is not None
            xs, conditions = (torch.cat([x, x]), torch.cat([z, z_null])) if both else (x, z)
            eps, variance = self.denoiser(xs.to(z.dtype), t, conditions).float().chunk(2, dim=-1)
            if both:
                (eps, eps_null), variance = eps.chunk(2), variance[: len(z)]
                difference = eps_null - eps
            elif z_null is not None:
                eps_null = eps + difference
            if z_null is not None:
                eps = eps_null + guidance * (eps - eps_null)
            x = solver.step(step, x, eps, variance, noise[:, :, i + 1])
        return x
