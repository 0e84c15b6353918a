"""Attention by two products against the formula in float64 and against the fused kernel."""

import pytest
import torch
import torch.nn.functional as F

from marcli.sampling.engine import attention
from marcli.sampling.engine.attention import attend


def queries_keys_values(batch, queries, keys, dtype):
    """As a block gives them: views of one tensor."""
    torch.manual_seed(0)
    q, k, v = torch.randn(batch, keys, 3, 4, 16, dtype=dtype).permute(2, 0, 3, 1, 4).unbind(0)
    return 2 * q[:, :, :queries], k, v


@pytest.mark.parametrize("batch, queries, keys", [(1, 20, 20), (5, 3, 40), (4, 1, 7)])
@pytest.mark.parametrize("products", [True, False])
def test_attention_is_the_formula(batch, queries, keys, products, monkeypatch):
    monkeypatch.setattr(attention, "PRODUCTS_ARE_FASTER", products)
    q, k, v = queries_keys_values(batch, queries, keys, torch.bfloat16)
    weights = torch.einsum("bhqd,bhkd->bhqk", q.double(), k.double()).div(16**0.5).softmax(-1)
    expected = torch.einsum("bhqk,bhkd->bhqd", weights, v.double())
    given = attend(q, k, v)
    assert given.dtype == torch.bfloat16 and given.shape == expected.shape
    assert (given - expected).abs().max() <= 2**-6 * v.abs().max()


def test_products_round_no_more_than_twice_as_much(monkeypatch):
    q, k, v = queries_keys_values(8, 64, 64, torch.float32)
    exact = F.scaled_dot_product_attention(q, k, v)
    rounded = [each.bfloat16() for each in (q, k, v)]
    errors = []
    for products in (True, False):
        monkeypatch.setattr(attention, "PRODUCTS_ARE_FASTER", products)
        errors.append((attend(*rounded) - exact).square().mean().sqrt())
    assert 0 < errors[0] <= 2 * errors[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_mask_and_fp32_stay_with_the_fused_kernel(dtype, monkeypatch):
    monkeypatch.setattr(attention, "PRODUCTS_ARE_FASTER", True)
    q, k, v = queries_keys_values(3, 20, 20, dtype)
    mask = torch.ones(20, 20, dtype=torch.bool).tril() if dtype == torch.bfloat16 else None
    assert torch.equal(attend(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
