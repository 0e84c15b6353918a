"""Multi-head attention, with an optional context to attend to and an optional cache of keys and values."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class KeyValueCache:
    """Preallocated keys and values of one attention layer; `length` of them are filled."""

    def __init__(self, keys: Float[Tensor, "batch heads max dim"], values: Float[Tensor, "batch heads max dim"]):
        self.keys, self.values, self.length = keys, values, 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values behind the old ones; return all of them."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V over heads, then a projection."""

    def __init__(self, *, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "batch queries width"],
        *,
        context: Float[Tensor, "batch keys width"] | None = None,
        causal: bool = False,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "batch queries width"]:
        """Attend from `x` to itself, to `context`, or (causal, with a cache) to everything before it."""
        if context is None:
            q, k, v = self.split_heads(self.qkv(x), 3)
        else:
            width = x.shape[-1]
            q = self.split_heads(F.linear(x, self.qkv.weight[:width], self.qkv.bias[:width]), 1)[0]
            k, v = self.split_heads(F.linear(context, self.qkv.weight[width:], self.qkv.bias[width:]), 2)
        if cache is not None:
            k, v = cache.append(k, v)
        whole = causal and q.shape[2] == k.shape[2]  # the fastest kernels know this case, and take no mask
        mask = causal_mask(q, k) if causal and not whole else None
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=whole)
        x = self.proj(x.transpose(1, 2).flatten(2))
        return F.dropout(x, self.dropout, self.training)

    def split_heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[batch, n, parts * width] to `parts` tensors [batch, heads, n, width / heads]."""
        b, n, _ = x.shape
        return x.view(b, n, parts, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def causal_mask(q: Tensor, k: Tensor) -> Tensor | None:
    """True where a query may look; the last query sees every key, so alone it needs no mask."""
    queries, keys = q.shape[2], k.shape[2]
    if queries == 1:
        return None
    return torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
