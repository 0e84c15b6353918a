"""The DiT comparator (2212.09748): one denoiser for the whole grid, diffusion mathematics shared with the head.

The network is diffusers' `DiTTransformer2DModel`. Three of its habits are undone, since they differ from the published
model: it keeps one copy of the timestep and label embedding per block, it drops labels itself, differently in every
block, and it spaces the timestep's frequencies over one interval fewer.
"""

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from marcli.model.process.gaussian import diffuse, full_process
from marcli.model.process.losses import diffusion_loss


class DiT(nn.Module):
    """Denoise latents given timestep and class; label `num_classes` is the unconditional one."""

    def __init__(
        self,
        *,
        channels: int,
        size: int,
        patch_size: int,
        num_classes: int,
        width: int,
        depth: int,
        heads: int,
        schedule: str,
        label_drop: float,
    ) -> None:
        super().__init__()
        from diffusers import DiTTransformer2DModel

        self.channels = channels
        self.size = size
        self.num_classes = num_classes
        self.label_drop = label_drop
        self.process = full_process(schedule)
        self.transformer = DiTTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            in_channels=channels,
            out_channels=2 * channels,
            num_layers=depth,
            sample_size=size,
            patch_size=patch_size,
            num_embeds_ada_norm=num_classes,
            norm_eps=1e-6,
        )
        share_embedding(self.transformer)
        initialize(self.transformer)

    def head_parameters(self) -> list[nn.Parameter]:
        """A DiT has no head."""
        return []

    def num_known(self, generator: Generator) -> int:
        """No token is ever known beforehand."""
        return 0

    def draw(self, generator: Generator, num_known: int) -> dict[str, Tensor]:
        """All randomness of one training image: whether its label is dropped, its timestep and noise."""
        return {
            "dropped": torch.rand((), generator=generator) < self.label_drop,
            "t": torch.randint(len(self.process), (), generator=generator),
            "noise": torch.randn(self.size**2, self.channels, generator=generator),
        }

    def forward(
        self,
        latents: Float[Tensor, "batch channels side side"],
        labels: Int[Tensor, " batch"],
        draws: dict[str, Tensor],
        num_known: int,
    ) -> Float[Tensor, "batch places"]:
        """The loss: squared error of the noise plus the variational bound, one value per place of the grid."""
        x0, noise = latents.flatten(2).transpose(1, 2), draws["noise"]
        t = draws["t"].unsqueeze(1).expand(x0.shape[:2])
        x = diffuse(self.process, x0, t, noise)
        labels = torch.where(draws["dropped"], self.num_classes, labels)
        prediction = self.denoise(x, draws["t"], labels).float()
        mse, vb = diffusion_loss(self.process, x0, x, t, noise, prediction)
        return mse + vb

    def denoise(
        self,
        x: Float[Tensor, "batch places channels"],
        t: Int[Tensor, " batch"],
        labels: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch places two_channels"]:
        """Return eps, then the variance interpolation, for every place of the grid."""
        grid = x.transpose(1, 2).unflatten(2, (self.size, self.size))
        out = self.transformer(grid, timestep=t, class_labels=labels, return_dict=False)[0]
        return out.flatten(2).transpose(1, 2)


def share_embedding(transformer: nn.Module) -> None:
    """Leave one timestep and label embedding, that of the first block; labels are dropped by the caller."""
    first, *others = transformer.transformer_blocks
    shared = first.norm1.emb
    shared.time_proj.downscale_freq_shift = 0
    shared.class_embedder.dropout_prob = 0.0
    for block in others:
        del block.norm1.emb
        # Not registered as a module, so that weights are stored and counted once.
        object.__setattr__(block.norm1, "emb", shared)


def initialize(transformer: nn.Module) -> None:
    """Initialise as published: Xavier layers, every modulation and the output at zero."""
    for module in transformer.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for block in transformer.transformer_blocks:
        for part in (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v):
            nn.init.xavier_uniform_(part.weight, gain=0.5**0.5)  # a third of one published layer, 3 widths high
    embed = transformer.transformer_blocks[0].norm1.emb
    nn.init.normal_(embed.class_embedder.embedding_table.weight, std=0.02)
    nn.init.normal_(embed.timestep_embedder.linear_1.weight, std=0.02)
    nn.init.normal_(embed.timestep_embedder.linear_2.weight, std=0.02)
    modulations = [block.norm1.linear for block in transformer.transformer_blocks]
    for layer in (*modulations, transformer.proj_out_1, transformer.proj_out_2):
        nn.init.zeros_(layer.weight)
