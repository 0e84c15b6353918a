"""The published way of working, in this package's modules: a yardstick that needs nothing else.

The sampler generates with the plain modules, but spends its time as the published code does, operation by operation
(counted on a CPU they are 0.6 % apart; with a model so small that only their number costs time, it is 9 % faster):

- every schedule array, the map of timesteps and the table of frequencies travel from the host whenever they are used;
- the timestep is embedded for every row, z is embedded anew and SiLU taken in every block at every diffusion step;
- guided and unguided half are both drawn, and the second is thrown away;
- known and hidden tokens are told apart by boolean masks, so the host waits for the device four times per AR step;
- the whole last decoder layer is computed; guidance is a tensor that the host compares with 1;
- weights stay fp32, half precision comes from autocast, and noise is drawn when it is needed.

`loss` is the head's part of a training step, as wasteful. The published code itself runs beside both of them in
sampling_engine.py and train_step.py where MARCLI_PUBLISHED_MAR names it.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from marcli.model.autoregressive import AutoregressiveModel
from marcli.model.head.denoiser import DenoisingMLP
from marcli.model.head.diffusion import DiffusionHead
from marcli.model.layers.embed import MAX_PERIOD, NUM_FREQUENCIES
from marcli.model.process.losses import diffusion_loss
from marcli.recipe.schema import Recipe

LOSS_ARRAYS = (
    "x_from_x0",
    "x_from_noise",
    *("mean_from_x0", "mean_from_x", "log_variance_min", "log_variance_min") * 2,
)
LOSS_ARRAYS += ("x0_from_x", "x0_from_eps", "log_variance_min", "log_variance_max")
REVERSE_ARRAYS = ("log_variance_min", "log_variance_max", "x0_from_x", "x0_from_eps", "mean_from_x0", "mean_from_x")


class AsPublished:
    """Generates latents of a masked model with a diffusion head, wastefully."""

    def __init__(self, model: AutoregressiveModel, recipe: Recipe) -> None:
        self.model, self.sample = model, recipe.sample
        self.device = model.null_class.device
        self.process = model.head.process.respaced(recipe.sample.diffusion_steps, recipe.sample.max_timestep)
        self.arrays = {name: self.process.tables[name].numpy() for name in REVERSE_ARRAYS}
        self.variance = np.exp(self.arrays["log_variance_min"])  # looked up at every step, used at none
        self.steps = recipe.sampling_steps

    @torch.inference_mode()
    def tokens(self, labels: Tensor) -> Tensor:
        """Tokens in raster order, [batch, tokens, dim]."""
        model, cfg, (batch, n) = self.model, self.sample.cfg, (len(labels), self.model.num_tokens)
        hidden = torch.ones(batch, n).to(self.device)
        tokens = torch.zeros(batch, n, model.token_dim).to(self.device)
        orders = np.stack([np.random.permutation(n) for _ in range(batch)])
        orders = torch.tensor(orders).to(self.device)
        for index in range(self.steps):
            fresh = tokens.clone()
            condition = torch.cat([model.class_embed(labels), model.null_class.repeat(batch, 1)])
            both, both_hidden = torch.cat([tokens, tokens]), torch.cat([hidden, hidden])
            z = self.z_of_all(both, both_hidden, condition)
            left = torch.tensor([np.floor(n * np.cos(math.pi / 2 * (index + 1) / self.steps))]).float().to(self.device)
            left = torch.minimum(hidden.sum(-1, keepdim=True) - 1, left)
            left = torch.maximum(torch.tensor([1.0]).to(self.device), left)[0]
            still = torch.zeros(batch, n).to(self.device)
            still = still.scatter(-1, orders[:, : left.long()], torch.ones(batch, n).to(self.device)).bool()
            new = hidden.bool() if index == self.steps - 1 else torch.logical_xor(hidden.bool(), still)
            hidden = still.float()
            guidance = 1 + (cfg - 1) * (n - left) / n
            drawn = self.draw(z[torch.cat([new, new]).nonzero(as_tuple=True)], guidance)
            fresh[new.nonzero(as_tuple=True)] = drawn.chunk(2)[0].to(fresh.dtype)
            tokens = fresh.clone()
        return tokens

    def z_of_all(self, tokens: Tensor, hidden: Tensor, condition: Tensor) -> Tensor:
        """z of every token, known or hidden."""
        backbone, batch = self.model.backbone, len(hidden)
        x = backbone.token_embed(tokens)
        x = torch.cat([torch.zeros(batch, backbone.buffer_size, x.shape[-1]).to(x), x], dim=1)
        hidden = torch.cat([torch.zeros(batch, backbone.buffer_size).to(hidden), hidden], dim=1)
        x[:, : backbone.buffer_size] = condition.unsqueeze(1)
        x = backbone.embed_norm(x + backbone.encoder_position)
        x = x[(1 - hidden).nonzero(as_tuple=True)].reshape(batch, -1, x.shape[-1])
        for block in backbone.encoder:
            x = block(x)
        x = backbone.decoder_embed(backbone.encoder_norm(x))
        filled = backbone.mask_token.repeat(batch, hidden.shape[1], 1).to(x.dtype).clone()
        filled[(1 - hidden).nonzero(as_tuple=True)] = x.reshape(-1, x.shape[-1])
        x = filled + backbone.decoder_position
        for block in backbone.decoder:
            x = block(x)
        return backbone.decoder_norm(x)[:, backbone.buffer_size :] + backbone.z_position

    def draw(self, z: Tensor, guidance: Tensor) -> Tensor:
        """Tokens of both halves."""
        assert guidance != 1.0  # which waits for the device
        x = torch.randn(len(z) // 2, self.model.token_dim).to(self.device)
        x = torch.cat([x, x])
        for index in reversed(range(len(self.process))):
            t = torch.tensor([index] * len(x)).to(self.device)
            original = torch.tensor(self.process.timesteps, device=self.device, dtype=t.dtype)[t]
            x = self.reverse(x, t, self.denoise(x, original, z, guidance))
        return x

    def denoise(self, x: Tensor, t: Tensor, z: Tensor, guidance: Tensor) -> Tensor:
        """Guided eps and the variances, of both halves."""
        first = x[: len(x) // 2]
        output = every_row(self.model.head.denoiser, torch.cat([first, first]), t, z)
        eps, rest = output[:, : x.shape[1]], output[:, x.shape[1] :]
        eps, null = torch.split(eps, len(eps) // 2)
        eps = null + guidance * (eps - null)
        return torch.cat([torch.cat([eps, eps]), rest], dim=1)

    def reverse(self, x: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """x one diffusion step earlier."""
        eps, variance = torch.split(output, x.shape[1], dim=1)
        at = self.looked_up(t, x.shape)
        lowest, highest = at("log_variance_min"), at("log_variance_max")
        share = (variance + 1) / 2
        log_variance = share * highest + (1 - share) * lowest
        torch.exp(log_variance)
        x0 = at("x0_from_x") * x - at("x0_from_eps") * eps
        mean = at("mean_from_x0") * x0 + at("mean_from_x") * x
        from_host(self.variance, t, x.shape), at("log_variance_min")
        noise = torch.randn_like(x)
        inside = (t != 0).float().view(-1, 1)
        return mean + inside * torch.exp(0.5 * log_variance) * noise * self.sample.temperature

    def looked_up(self, t: Tensor, shape: Sequence[int]) -> Callable[[str], Tensor]:
        """A function of an array's name: its values at `t`, in every element."""
        return lambda name: from_host(self.arrays[name], t, shape)


def every_row(net: DenoisingMLP, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
    """The denoising MLP, everything in it computed for every row."""
    x = net.token_embed(x)
    half = NUM_FREQUENCIES // 2
    frequencies = torch.exp(-math.log(MAX_PERIOD) * torch.arange(half, dtype=torch.float32) / half).to(x.device)
    angles = t[:, None].float() * frequencies[None]
    waves = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
    y = net.time_embed.fc2(F.silu(net.time_embed.fc1(waves))) + net.z_embed(z)
    for block in net.blocks:
        shift, scale, gate = block.modulation(F.silu(y)).chunk(3, dim=-1)
        x = x + gate * block.fc2(F.silu(block.fc1(block.norm(x) * (1 + scale) + shift)))
    shift, scale = net.final_modulation(F.silu(y)).chunk(2, dim=-1)
    return net.out(net.final_norm(x) * (1 + scale) + shift)


def loss(head: DiffusionHead, z: Tensor, x0: Tensor) -> Tensor:
    """The loss of every row; timesteps and noise are drawn on the device, arrays looked up wherever they are used."""
    process = head.process
    t, noise = torch.randint(len(process), (len(x0),), device=x0.device), torch.randn_like(x0)
    at = {name: from_host(process.tables[name].numpy(), t, x0.shape) for name in LOSS_ARRAYS[:2]}
    x = at["x_from_x0"] * x0 + at["x_from_noise"] * noise
    prediction = every_row(head.denoiser, x, t, z).float()
    for name in LOSS_ARRAYS[2:]:  # which `diffusion_loss` then finds on the device
        from_host(process.tables[name].numpy(), t, x0.shape)
    mse, vb = diffusion_loss(process, x0, x, t, noise, prediction)
    return mse + vb


def from_host(array: np.ndarray, t: Tensor, shape: Sequence[int]) -> Tensor:
    """Values of a host array at `t`, in every element."""
    return torch.from_numpy(array).to(t.device)[t].float()[..., None] + torch.zeros(shape, device=t.device)
