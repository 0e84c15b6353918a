"""The DiT's engines: one reverse diffusion of the whole grid, no order."""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marcli.model.backbone.dit import DiT
from marcli.model.order import raster_order
from marcli.model.process.gaussian import reverse_sample
from marcli.model.process.solvers import solver_steps
from marcli.recipe.schema import Recipe
from marcli.runtime.graphs import CudaGraphs
from marcli.sampling.engine.base import head_sampling
from marcli.sampling.engine.compiled import compile_parts
from marcli.sampling.engine.recorded import recorded_dit
from marcli.sampling.reveal import OnStep
from marcli.sampling.tape import Tape, picture_generator


class DiTEngine:
    """Ancestral sampling with constant guidance, on the first `guidance_channels` of eps alone if so published."""

    name = "plain"

    def __init__(self, model: DiT, recipe: Recipe) -> None:
        self.model = model
        self.guidance_channels = recipe.model.backbone.guidance_channels or model.channels
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self.take_settings(recipe)

    def take_settings(self, recipe: Recipe) -> None:
        """Sample as `recipe.sample` says from now on."""
        self.cfg = recipe.sample.cfg
        self.settings = head_sampling(recipe)
        self.process = self.model.process.respaced(self.settings.diffusion_steps, self.settings.max_timestep)

    def under(self, recipe: Recipe) -> "DiTEngine":
        """The same model under the sampling settings of another recipe of it."""
        other = copy.copy(self)
        other.take_settings(recipe)
        return other

    def draw_tape(self, *, seed: int, indices: Sequence[int]) -> Tape:
        """Starting noise, then one draw per reverse step, for every place of the grid."""
        shape = (self.model.size**2, len(self.process) + 1, self.model.channels)
        noise = [torch.randn(shape, generator=picture_generator(seed, index)) for index in indices]
        return Tape(raster_order(self.model.size**2).expand(len(indices), -1), torch.stack(noise))

    @torch.inference_mode()
    def latents(
        self, *, labels: Int[Tensor, " batch"], tape: Tape, on_step: OnStep | None
    ) -> Float[Tensor, "batch channels side side"]:
        """Generate latents of these classes; there are no AR steps for `on_step` to see."""
        x = tape.noise[:, :, 0]
        for i, step in enumerate(solver_steps("ancestral", self.process)):
            eps, variance = self.predict(x, step.timestep, labels)
            s = self.settings
            x = reverse_sample(step, x, eps, variance, tape.noise[:, :, i + 1], s.temperature, s.clip_denoised)
        return x.transpose(1, 2).unflatten(2, (self.model.size, self.model.size))

    def predict(self, x: Tensor, timestep: int, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Guided eps and the conditional variance."""
        guided = self.cfg > 1
        both = torch.cat([x, x]) if guided else x
        if guided:
            labels = torch.cat([labels, torch.full_like(labels, self.model.num_classes)])
        t = torch.full((len(both),), timestep, device=x.device)
        eps, variance = self.model.denoise(both.to(self.dtype), t, labels).float().chunk(2, dim=-1)
        if not guided:
            return eps, variance
        (eps, null), variance = eps.chunk(2), variance[: len(x)]
        n = self.guidance_channels
        return torch.cat([(null + self.cfg * (eps - null))[..., :n], eps[..., n:]], dim=-1), variance


class FastDiTEngine(DiTEngine):
    """The same on a GPU, each pass of the network replayed from a recording and, for long work, compiled."""

    name = "fast"

    def __init__(self, model: DiT, recipe: Recipe, *, compiled: bool) -> None:
        """Changes `model`; `compiled` spends a minute or so of the first batch for all the others."""
        if compiled:
            compile_parts(model.transformer.transformer_blocks)
        super().__init__(recorded_dit(model, CudaGraphs()), recipe)
