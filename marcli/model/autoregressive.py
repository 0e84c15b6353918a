"""The generative model over tokens: class vector, backbone, head.

labels -> condition
tokens in reveal order -> backbone -> z of every hidden token -> head -> one loss per token
"""

import math

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Generator, Tensor, nn

from marcli.model.grid import to_tokens
from marcli.model.head.base import Draws, Head
from marcli.model.layers.attention import KeyValueCache
from marcli.model.layers.embed import embedding, initialize, take
from marcli.model.order import draw_mask_ratio, draw_order


class AutoregressiveModel(nn.Module):
    """MAR with a masked backbone, AR with a causal one; any head (section 4 of 2406.11838)."""

    def __init__(
        self,
        *,
        backbone: nn.Module,
        head: Head,
        num_tokens: int,
        token_dim: int,
        patch_size: int,
        num_classes: int,
        width: int,
        label_drop: float,
        order: str,
        mask_ratio: tuple[float, float] | None,
    ) -> None:
        """`order` is a name that `draw_order` knows.

        `mask_ratio` is (smallest, std) of the hidden share; None hides every token (causal).
        """
        super().__init__()
        self.num_tokens = num_tokens
        self.token_dim = token_dim
        self.patch_size = patch_size
        self.label_drop = label_drop
        self.order = order
        self.mask_ratio = mask_ratio
        self.class_embed = nn.Embedding(num_classes, width)
        self.null_class = embedding(1, width)
        initialize(self)
        self.backbone = backbone
        self.head = head

    def head_parameters(self) -> list[nn.Parameter]:
        """Parameters of the head, which are never decayed."""
        return list(self.head.parameters())

    def num_known(self, generator: Generator) -> int:
        """Tokens known in one training step; drawn once for the whole global batch."""
        if self.mask_ratio is None:
            return 0
        ratio = draw_mask_ratio(generator, *self.mask_ratio)
        return self.num_tokens - math.ceil(self.num_tokens * ratio)

    def draw(self, generator: Generator, num_known: int) -> Draws:
        """All randomness of one training image: its order, whether its label is dropped, its head's draws."""
        order = self.draw_order(generator)
        dropped = torch.rand((), generator=generator) < self.label_drop
        return {"order": order, "dropped": dropped, **self.head.draw(generator, self.num_tokens - num_known)}

    def draw_order(self, generator: Generator) -> Int[Tensor, " tokens"]:
        """The order in which one image's tokens are revealed."""
        return draw_order(self.order, generator, self.num_tokens)

    def condition(
        self, labels: Int[Tensor, " batch"], dropped: Bool[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch width"]:
        """Class vectors, the null vector where the label is dropped."""
        embedded = self.class_embed(labels)
        if dropped is None:
            return embedded
        return torch.where(dropped.unsqueeze(-1), self.null_class.to(embedded.dtype), embedded)

    def no_tokens(self, batch_size: int) -> Shaped[Tensor, "batch 0 dim"]:
        """What is known before the first step."""
        return torch.empty(batch_size, 0, self.token_dim, dtype=self.head.token_dtype, device=self.null_class.device)

    def predict(
        self,
        known: Shaped[Tensor, "batch known dim"],
        order: Int[Tensor, "batch tokens"],
        condition: Float[Tensor, "batch width"],
        *,
        num_wanted: int,
        cache: list[KeyValueCache] | None,
    ) -> Float[Tensor, "batch wanted width"]:
        """z of the next `num_wanted` tokens of the order, in the dtype of `condition`."""
        if known.is_floating_point():
            known = known.to(condition.dtype)
        return self.backbone.predict(known, order, condition, num_wanted=num_wanted, cache=cache)

    def forward(
        self,
        latents: Shaped[Tensor, "batch channels height width"],
        labels: Int[Tensor, " batch"],
        draws: Draws,
        num_known: int,
    ) -> Float[Tensor, "batch hidden"]:
        """One loss per hidden token; `draws` are those of each image, stacked."""
        order = draws["order"]
        tokens = take(to_tokens(latents, self.patch_size), order)
        z = self.backbone(tokens, order, self.condition(labels, draws["dropped"]), num_known)
        return self.head.loss(z, tokens[:, num_known:], draws)
