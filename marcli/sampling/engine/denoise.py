"""The diffusion head, arranged for generation: what does not depend on x_t is computed before the first step.

Modulations are a function of timestep and z alone, so those of many diffusion steps are one product, as many as
`MODULATION_BYTES` hold. Guided and unguided half share x, so the token is embedded once.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from marcli.model.head.base import Head, HeadSampling
from marcli.model.head.denoiser import DenoisingMLP, ResidualBlock
from marcli.model.head.diffusion import DiffusionHead
from marcli.model.layers.block import NORM_EPS
from marcli.model.process.gaussian import GaussianProcess
from marcli.model.process.solvers import make_solver, process_for
from marcli.sampling.engine.linear import PackedLinear, packed
from marcli.sampling.engine.update import MergedStep, Update, merged_steps

MODULATION_BYTES = 32 * 2**20


class FastDiffusionHead(Head):
    """Samples what a `DiffusionHead` samples."""

    def __init__(self, head: DiffusionHead) -> None:
        super().__init__()
        denoiser = head.denoiser
        self.process = head.process
        self.token_dim = head.token_dim
        self.time_embed = denoiser.time_embed
        self.z_embed = packed(denoiser.z_embed, pack=True)
        self.modulate = Modulations(denoiser)
        self.body = Body(denoiser)
        self.update = Update()
        self._time_tables: dict[tuple[GaussianProcess, int], tuple[Tensor, Tensor]] = {}
        self._steps: dict[tuple[str, GaussianProcess, float], list[MergedStep]] = {}

    noise = DiffusionHead.noise  # the plain head's tape

    def sample(
        self,
        z: Float[Tensor, "batch wanted z_dim"],
        z_null: Float[Tensor, "batch wanted z_dim"] | None,
        guidance: float | Float[Tensor, ""],
        noise: Float[Tensor, "batch wanted draws dim"],
        settings: HeadSampling,
    ) -> Float[Tensor, "batch wanted dim"]:
        """Run the reverse process; a 0-dim tensor as guidance lets a captured graph serve every step."""
        process = process_for(settings.solver, self.process, settings.diffusion_steps, settings.max_timestep)
        steps, runs_both = self.steps(process, z.device, settings), settings.runs_both(len(process))
        conditions = self.z_embed(torch.stack([z] if z_null is None else [z, z_null]).flatten(1, 2))
        times, times_of_one = self.time_tables(process, z.device, settings)
        whole, conditional = self.modulations(times, conditions), self.modulations(times_of_one, conditions[:1])
        noise = noise.permute(2, 0, 1, 3).flatten(1, 2).contiguous()  # [draws, rows, dim]
        x, x0 = make_solver(settings.solver, temperature=settings.temperature, clip=None).start(noise[0]), None
        if not isinstance(guidance, Tensor):
            guidance = torch.full((), guidance, device=z.device)
        for i, (step, both) in enumerate(zip(steps, runs_both, strict=True)):
            output = self.body(x.to(z.dtype), next(whole if both else conditional))
            if settings.guidance_refresh > 1 and z_null is not None:
                if both:
                    difference = output[1] - output[0]
                else:
                    output = torch.stack([output[0], output[0] + difference])
            x, x0 = self.update(step, x, output, guidance, noise[i + 1], x0, settings.clip_denoised)
        return x.unflatten(0, z.shape[:2])

    def modulations(
        self, times: Float[Tensor, "steps width"], conditions: Float[Tensor, "halves rows width"]
    ) -> Iterator[list[Float[Tensor, "halves rows _"]]]:
        """Modulations of step after step, computed for as many at once as the memory cap allows."""
        at_once = self.modulate.steps_at_once(conditions)
        for part in times.split(at_once):
            modulations = self.modulate(part, conditions)
            for i in range(len(part)):
                yield [modulation[i] for modulation in modulations]
            del modulations  # before there are others

    def steps(self, process: GaussianProcess, device: torch.device, settings: HeadSampling) -> list[MergedStep]:
        """A solver's steps with their constants on the device; computed once."""
        key = (settings.solver, process, settings.temperature)
        if key not in self._steps:
            self._steps[key] = merged_steps(settings.solver, process, temperature=settings.temperature, device=device)
        return self._steps[key]

    def time_tables(
        self, process: GaussianProcess, device: torch.device, settings: HeadSampling
    ) -> tuple[Float[Tensor, "steps width"], Float[Tensor, "other_steps width"]]:
        """Embeddings of the timesteps at which both halves run, and of the others, as they are visited; made once."""
        key = (process, settings.guidance_refresh)
        if key not in self._time_tables:
            visited = list(zip(process.timesteps[::-1], settings.runs_both(len(process)), strict=True))
            both, others = ([timestep for timestep, both in visited if both == wanted] for wanted in (True, False))
            table = self.time_embed(torch.tensor(both + others, device=device))
            self._time_tables[key] = table.split([len(both), len(others)])
        return self._time_tables[key]


class Modulations(nn.Module):
    """Shift, 1 + scale and gate of every block at many timesteps, then shift and 1 + scale of the output."""

    def __init__(self, denoiser: DenoisingMLP) -> None:
        super().__init__()
        layers = [*(block.modulation for block in denoiser.blocks), denoiser.final_modulation]
        self.layers = nn.ModuleList(self.with_one(layer, denoiser.out.in_features) for layer in layers)
        self.features = sum(layer.out_features for layer in layers)

    def with_one(self, layer: nn.Linear, width: int) -> PackedLinear:
        """The layer with the 1 of (1 + scale) moved into its bias; packed in bf16, where fp32 gains nothing."""
        bias = layer.bias.detach().clone()
        bias[width : 2 * width] += 1
        return PackedLinear(layer.weight, bias, activation="none", pack=bias.dtype == torch.bfloat16)

    def steps_at_once(self, conditions: Float[Tensor, "halves rows width"]) -> int:
        """Diffusion steps whose modulations fit the memory cap; at least one."""
        rows = conditions.shape[0] * conditions.shape[1]
        return max(1, MODULATION_BYTES // (rows * self.features * conditions.element_size()))

    def forward(
        self, times: Float[Tensor, "steps width"], conditions: Float[Tensor, "halves rows width"]
    ) -> list[Float[Tensor, "steps halves rows _"]]:
        """One tensor per block, the output's last."""
        y = F.silu(times[:, None, None] + conditions)
        return [layer(y) for layer in self.layers]


class Body(nn.Module):
    """The part of the denoiser that depends on x."""

    def __init__(self, denoiser: DenoisingMLP) -> None:
        super().__init__()
        self.token_embed = packed(denoiser.token_embed, pack=True)
        self.blocks = nn.ModuleList(FastResidualBlock(block) for block in denoiser.blocks)
        self.out = packed(denoiser.out, pack=True)
        self.width = denoiser.out.in_features

    def forward(
        self, x: Float[Tensor, "rows dim"], modulations: list[Float[Tensor, "halves rows _"]]
    ) -> Float[Tensor, "halves rows two_dim"]:
        """eps, then the variance interpolation, of each half."""
        x = self.token_embed(x)  # the halves part at the first modulation
        for block, modulation in zip(self.blocks, modulations[:-1], strict=True):
            x = block(x, modulation)
        shift, scale = modulations[-1].chunk(2, dim=-1)
        return self.out(torch.addcmul(shift, F.layer_norm(x, (self.width,), eps=NORM_EPS), scale))


class FastResidualBlock(nn.Module):
    """x + gate * mlp(norm(x) * scale + shift)."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.norm = block.norm
        self.fc1 = packed(block.fc1, activation="swish", pack=True)
        self.fc2 = packed(block.fc2, pack=True)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift, scale, gate = modulation.chunk(3, dim=-1)
        return torch.addcmul(x, gate, self.fc2(self.fc1(torch.addcmul(shift, self.norm(x), scale))))
