"""The cross-entropy head: a categorical distribution over the codebook, the paper's discrete baseline."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from marcli.model.head.base import Draws, Head, HeadSampling
from marcli.model.layers.embed import initialize


class CrossEntropyHead(Head):
    """A linear layer to one logit per code."""

    token_dtype = torch.int64

    def __init__(self, *, codebook_size: int, z_dim: int) -> None:
        super().__init__()
        self.logits = nn.Linear(z_dim, codebook_size)
        initialize(self)

    def draw(self, generator: Generator, num_hidden: int) -> Draws:
        """The loss is not random."""
        return {}

    def loss(
        self, z: Float[Tensor, "batch hidden z_dim"], tokens: Int[Tensor, "batch hidden 1"], draws: Draws
    ) -> Float[Tensor, "batch hidden"]:
        """Negative log-likelihood of the code, in nats."""
        logits = self.logits(z).float()
        return F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view(z.shape[:2])

    def noise(
        self, generator: Generator, num_tokens: int, num_steps: int, settings: HeadSampling
    ) -> Float[Tensor, "tokens steps 2"]:
        """Uniforms in [0, 1) for every token and step: one picks the code, one perturbs its confidence."""
        return torch.rand(num_tokens, num_steps, 2, generator=generator)

    def sample(
        self,
        z: Float[Tensor, "batch wanted z_dim"],
        z_null: Float[Tensor, "batch wanted z_dim"] | None,
        guidance: float,
        noise: Float[Tensor, "batch wanted steps 2"],
        settings: HeadSampling,
    ) -> Int[Tensor, "batch wanted 1"]:
        """Draw codes by inverting the cumulative distribution; each token is drawn once, with its first uniform."""
        return pick(self.log_probs(z, z_null, guidance, settings), noise[:, :, 0, 0])

    def log_probs(
        self, z: Tensor, z_null: Tensor | None, guidance: float, settings: HeadSampling
    ) -> Float[Tensor, "batch wanted codes"]:
        """Guided logits (Muse, section 2.7) over the temperature, normalised."""
        logits = self.logits(z).float()
        if z_null is not None:
            null = self.logits(z_null).float()
            logits = null + guidance * (logits - null)
        return F.log_softmax(logits / settings.temperature, dim=-1)


def pick(
    log_probs: Float[Tensor, "batch wanted codes"], uniform: Float[Tensor, "batch wanted"]
) -> Int[Tensor, "batch wanted 1"]:
    """The code at which the cumulative probability passes `uniform`."""
    cumulative = log_probs.double().exp().cumsum(-1)
    threshold = uniform.double().unsqueeze(-1) * cumulative[..., -1:]
    return torch.searchsorted(cumulative, threshold, right=True).clamp(max=log_probs.shape[-1] - 1)
