"""Attention in generation: PyTorch's fused kernel, or two products where that kernel makes poor use of the CPU.

In bf16 the fused kernel needs matrix tiles (AMX). Without them it multiplies at half the speed of the products that
oneDNN has for this CPU's bf16 instructions. The scores are rounded to bf16 on the way, as everything around them is.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

CPU = torch.cpu.get_capabilities()
PRODUCTS_ARE_FASTER = CPU.get("avx512_bf16", False) and not CPU.get("amx_bf16", False)
SEQUENCES_AT_ONCE = 2  # whose scores stay in the cache of a core


def attend(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch heads keys dim"],
    v: Float[Tensor, "batch heads keys dim"],
    mask: Tensor | None = None,
) -> Float[Tensor, "batch heads queries dim"]:
    """softmax(Q K^T / sqrt(d)) V, where `mask` is true or there is none."""
    if mask is not None or q.dtype != torch.bfloat16 or q.device.type != "cpu" or not PRODUCTS_ARE_FASTER:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    parts = zip(*(each.split(SEQUENCES_AT_ONCE) for each in (q, k, v)), strict=True)
    return torch.cat([by_products(*part) for part in parts])


def by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The formula as it stands."""
    return (q / q.shape[-1] ** 0.5 @ k.transpose(-1, -2)).softmax(-1) @ v
