"""The masked autoregressive transformer: an MAE whose decoder gives one vector z per hidden token.

Tokens travel in reveal order, so known and hidden ones are slices and nothing is scattered: attention does not care
where in the sequence a token stands, only which position is embedded in it.
"""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from marcli.model.layers.block import NORM_EPS, Block
from marcli.model.layers.embed import at_positions, embedding, initialize, token_embedding


class MaskedBackbone(nn.Module):
    """Encoder over class and known tokens, decoder over those and mask tokens (section 4.2, figure 3)."""

    def __init__(
        self,
        *,
        num_tokens: int,
        token_dim: int,
        codebook_size: int | None,
        width: int,
        encoder_depth: int,
        decoder_depth: int,
        heads: int,
        mlp_ratio: float,
        buffer_size: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.buffer_size = buffer_size
        block = dict(width=width, heads=heads, mlp_ratio=mlp_ratio, dropout=dropout)
        self.token_embed = token_embedding(token_dim=token_dim, codebook_size=codebook_size, width=width)
        self.encoder_position = embedding(1, buffer_size + num_tokens, width)
        self.embed_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.encoder = nn.ModuleList(Block(**block) for _ in range(encoder_depth))
        self.encoder_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.decoder_embed = nn.Linear(width, width)
        self.mask_token = embedding(1, 1, width)
        self.decoder_position = embedding(1, buffer_size + num_tokens, width)
        self.decoder = nn.ModuleList(Block(**block) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.z_position = embedding(1, num_tokens, width)
        initialize(self)

    def encode(
        self,
        known: Shaped[Tensor, "batch known dim"],
        positions: Int[Tensor, "batch known"],
        condition: Float[Tensor, "batch width"],
    ) -> Float[Tensor, "batch buffer_and_known width"]:
        """Encode the known tokens behind `buffer_size` copies of the class vector."""
        buffer = condition.unsqueeze(1).expand(-1, self.buffer_size, -1)
        x = torch.cat([buffer, self.token_embed(known)], dim=1)
        x = x + self.places(self.encoder_position, positions)
        x = self.embed_norm(x)
        for block in self.encoder:
            x = block(x)
        return self.encoder_norm(x)

    def decode(
        self,
        encoded: Float[Tensor, "batch buffer_and_known width"],
        order: Int[Tensor, "batch tokens"],
        num_wanted: int,
    ) -> Float[Tensor, "batch wanted width"]:
        """z of the first `num_wanted` hidden tokens; the last block is computed for those alone."""
        num_known = encoded.shape[1] - self.buffer_size
        num_hidden = order.shape[1] - num_known
        masks = self.mask_token.to(encoded.dtype).expand(encoded.shape[0], num_hidden, -1)
        x = torch.cat([self.decoder_embed(encoded), masks], dim=1)
        x = x + self.places(self.decoder_position, order)
        for block in self.decoder[:-1]:
            x = block(x)
        first = self.buffer_size + num_known
        wanted = slice(first, first + num_wanted)
        z = self.decoder_norm(self.decoder[-1](x[:, wanted], context=x))
        return z + at_positions(self.z_position, order[:, num_known : num_known + num_wanted])

    def predict(
        self,
        known: Shaped[Tensor, "batch known dim"],
        order: Int[Tensor, "batch tokens"],
        condition: Float[Tensor, "batch width"],
        *,
        num_wanted: int,
        cache: None = None,
    ) -> Float[Tensor, "batch wanted width"]:
        """z of tokens order[known : known + num_wanted], given the tokens at order[:known]."""
        encoded = self.encode(known, order[:, : known.shape[1]], condition)
        return self.decode(encoded, order, num_wanted)

    def forward(
        self,
        tokens: Shaped[Tensor, "batch tokens dim"],
        order: Int[Tensor, "batch tokens"],
        condition: Float[Tensor, "batch width"],
        num_known: int,
    ) -> Float[Tensor, "batch hidden width"]:
        """z of every hidden token; `tokens` are in reveal order."""
        num_hidden = tokens.shape[1] - num_known
        return self.predict(tokens[:, :num_known], order, condition, num_wanted=num_hidden)

    def places(self, table: Tensor, positions: Int[Tensor, "batch tokens"]) -> Tensor:
        """Position embeddings of the buffer, then of `positions`."""
        buffer = table[:, : self.buffer_size].expand(positions.shape[0], -1, -1)
        return torch.cat([buffer, at_positions(table, positions + self.buffer_size)], dim=1)
