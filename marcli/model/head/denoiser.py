"""The denoising MLP: residual blocks modulated by AdaLN from the timestep and z (section 4.1)."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from marcli.model.layers.block import NORM_EPS
from marcli.model.layers.embed import TimestepEmbedding


class ResidualBlock(nn.Module):
    """x + gate * mlp(norm(x) * (1 + scale) + shift)."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Float[Tensor, "*rows width"], modulation: Float[Tensor, "*rows three_width"]) -> Tensor:
        shift, scale, gate = modulation.chunk(3, dim=-1)
        return x + gate * self.fc2(F.silu(self.fc1(self.norm(x) * (1 + scale) + shift)))


class DenoisingMLP(nn.Module):
    """Predict noise and variance interpolation of a noisy token, given its timestep and z."""

    def __init__(self, *, token_dim: int, z_dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.time_embed = TimestepEmbedding(width=width)
        self.z_embed = nn.Linear(z_dim, width)
        self.token_embed = nn.Linear(token_dim, width)
        self.blocks = nn.ModuleList(ResidualBlock(width=width) for _ in range(depth))
        self.final_norm = nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, 2 * token_dim)
        self.initialize()

    def initialize(self) -> None:
        """Xavier-uniform layers; modulations and output start at zero, so the MLP starts as the zero function."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.time_embed.fc1.weight, std=0.02)
        nn.init.normal_(self.time_embed.fc2.weight, std=0.02)
        for layer in (*(block.modulation for block in self.blocks), self.final_modulation, self.out):
            nn.init.zeros_(layer.weight)

    def forward(
        self,
        x: Float[Tensor, "*rows dim"],
        t: Int[Tensor, "*time_rows"],
        z: Float[Tensor, "*z_rows z_dim"],
    ) -> Float[Tensor, "*rows two_dim"]:
        """Return eps, then the variance interpolation; `t` and `z` broadcast against the rows of `x`."""
        y = F.silu(self.time_embed(t) + self.z_embed(z))
        return self.denoise(x, [block.modulation(y) for block in self.blocks], self.final_modulation(y))

    def denoise(
        self, x: Float[Tensor, "*rows dim"], modulations: list[Tensor], final: Tensor
    ) -> Float[Tensor, "*rows two_dim"]:
        """The part that depends on x, given every block's shift, scale and gate."""
        x = self.token_embed(x)
        for block, modulation in zip(self.blocks, modulations, strict=True):
            x = block(x, modulation)
        shift, scale = final.chunk(2, dim=-1)
        return self.out(self.final_norm(x) * (1 + scale) + shift)
