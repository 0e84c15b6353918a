"""The L2 head: regress the token. It cannot represent a distribution; the paper's negative control."""

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from marcli.model.head.base import Draws, Head, HeadSampling
from marcli.model.layers.embed import initialize


class L2Head(Head):
    """A linear layer to the token itself (Appendix D)."""

    def __init__(self, *, token_dim: int, z_dim: int) -> None:
        super().__init__()
        self.token = nn.Linear(z_dim, token_dim)
        initialize(self)

    def draw(self, generator: Generator, num_hidden: int) -> Draws:
        """The loss is not random."""
        return {}

    def loss(
        self, z: Float[Tensor, "batch hidden z_dim"], tokens: Float[Tensor, "batch hidden dim"], draws: Draws
    ) -> Float[Tensor, "batch hidden"]:
        """Squared error, mean over channels."""
        return (self.token(z).float() - tokens).square().mean(-1)

    def noise(
        self, generator: Generator, num_tokens: int, num_steps: int, settings: HeadSampling
    ) -> Float[Tensor, "tokens 0 0"]:
        """Nothing is drawn: the prediction is a point."""
        return torch.empty(num_tokens, 0, 0)

    def sample(
        self,
        z: Float[Tensor, "batch wanted z_dim"],
        z_null: Float[Tensor, "batch wanted z_dim"] | None,
        guidance: float,
        noise: Float[Tensor, "batch wanted 0 0"],
        settings: HeadSampling,
    ) -> Float[Tensor, "batch wanted dim"]:
        """The regressed token, extrapolated from the unconditional one under guidance."""
        token = self.token(z).float()
        if z_null is not None:
            null = self.token(z_null).float()
            token = null + guidance * (token - null)
        return token
