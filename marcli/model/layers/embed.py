"""Embeddings of timesteps, tokens and positions, and the initialisation that backbones and simple heads share."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

NUM_TIMESTEPS = 1000
NUM_FREQUENCIES = 256
MAX_PERIOD = 10000.0


class TimestepEmbedding(nn.Module):
    """Sinusoids of the timestep (cosine half first) through a two-layer MLP."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(NUM_FREQUENCIES, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, t: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows width"]:
        """Embed timesteps in 0..999; for more than 1,000 at once, a table of all of them is computed and looked up."""
        if t.numel() <= NUM_TIMESTEPS:
            return self.embed(t)
        table = self.embed(torch.arange(NUM_TIMESTEPS, device=t.device))
        return F.embedding(t, table.float())  # in fp32, since the gradients of equal timesteps are summed

    def embed(self, t: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows width"]:
        """The MLP itself."""
        return self.fc2(F.silu(self.fc1(sinusoids(t).to(self.fc1.weight.dtype))))


def sinusoids(t: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows frequencies"]:
    """cos and sin of t at frequencies from 1 down to 1 / 10,000."""
    half = NUM_FREQUENCIES // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.unsqueeze(-1).float() * torch.exp(-math.log(MAX_PERIOD) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class CodeEmbedding(nn.Module):
    """A learned vector per codebook entry, for tokens that are codes."""

    def __init__(self, *, codebook_size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(codebook_size, width))

    def forward(self, codes: Int[Tensor, "batch tokens 1"]) -> Float[Tensor, "batch tokens width"]:
        return F.embedding(codes.squeeze(-1), self.weight)


def token_embedding(*, token_dim: int, codebook_size: int | None, width: int) -> nn.Module:
    """A linear layer over continuous tokens, or a table over codes."""
    if codebook_size is None:
        return nn.Linear(token_dim, width)
    return CodeEmbedding(codebook_size=codebook_size, width=width)


def embedding(*shape: int) -> nn.Parameter:
    """A learned embedding, to be filled by `initialize`."""
    return nn.Parameter(torch.empty(shape))


def at_positions(
    table: Float[Tensor, "1 places width"], positions: Int[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens width"]:
    """Rows of a position table."""
    return F.embedding(positions, table[0])  # its gradient is summed in one order, which indexing's is not on a CPU


def take(
    x: Shaped[Tensor, "batch tokens dim"], positions: Int[Tensor, "batch picked"]
) -> Shaped[Tensor, "batch picked dim"]:
    """Tokens at the given positions of each row."""
    return x.gather(1, positions.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def initialize(module: nn.Module) -> None:
    """Initialise as JAX's ViT: Xavier-uniform linear layers, unit norms, everything else normal with std 0.02."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            nn.init.zeros_(child.bias)
        elif isinstance(child, nn.LayerNorm):
            if child.elementwise_affine:
                nn.init.ones_(child.weight)
                nn.init.zeros_(child.bias)
        else:
            for parameter in child.parameters(recurse=False):
                nn.init.normal_(parameter, std=0.02)
