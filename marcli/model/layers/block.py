"""The pre-norm transformer block of ViT (2010.11929), shared by the masked and the causal backbone."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from marcli.model.layers.attention import Attention, KeyValueCache

NORM_EPS = 1e-6


class MLP(nn.Module):
    """Two linear layers with an exact GELU between."""

    def __init__(self, *, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        x = F.dropout(F.gelu(self.fc1(x)), self.dropout, self.training)
        return F.dropout(self.fc2(x), self.dropout, self.training)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, *, width: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width=width, heads=heads, dropout=dropout)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width=width, hidden=int(width * mlp_ratio), dropout=dropout)

    def forward(
        self,
        x: Float[Tensor, "batch queries width"],
        *,
        context: Float[Tensor, "batch keys width"] | None = None,
        causal: bool = False,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "batch queries width"]:
        """Transform `x`; with `context`, its tokens attend to the context's instead of to each other."""
        if context is not None:
            context = self.norm1(context)
        x = x + self.attn(self.norm1(x), context=context, causal=causal, cache=cache)
        return x + self.mlp(self.norm2(x))
