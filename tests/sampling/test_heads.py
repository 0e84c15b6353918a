"""Heads draw from the distribution they state."""

import torch

from marcli.model.head.cross_entropy import CrossEntropyHead, pick
from marcli.model.head.l2 import L2Head
from tests.model.tiny import head_settings

SETTINGS = head_settings(temperature=0.8, diffusion_steps=4, max_timestep=950)


def test_codes_follow_the_guided_tempered_softmax():
    torch.manual_seed(0)
    head = CrossEntropyHead(codebook_size=6, z_dim=8)
    z, null = torch.randn(1, 1, 8), torch.randn(1, 1, 8)
    logits, logits_null = head.logits(z), head.logits(null)
    expected = torch.softmax((logits_null + 2.0 * (logits - logits_null)) / 0.8, dim=-1)[0, 0]
    n = 20000
    noise = torch.rand(n, 1, 1, 2, generator=torch.Generator().manual_seed(1))
    codes = head.sample(z.expand(n, -1, -1), null.expand(n, -1, -1), 2.0, noise, SETTINGS)
    shares = torch.bincount(codes.flatten(), minlength=6) / n
    assert (shares - expected).abs().max() < 0.015


def test_pick_inverts_the_cumulative_distribution():
    log_probs = torch.tensor([0.25, 0.5, 0.25]).log().expand(1, 5, 3)
    uniform = torch.tensor([[0.0, 0.24, 0.26, 0.74, 0.999999]])
    assert pick(log_probs, uniform).flatten().tolist() == [0, 0, 1, 1, 2]


def test_l2_head_is_a_point_and_its_loss_is_its_square():
    torch.manual_seed(0)
    head = L2Head(token_dim=3, z_dim=8)
    z, tokens = torch.randn(2, 4, 8), torch.randn(2, 4, 3)
    point = head.sample(z, None, 1.0, torch.empty(2, 4, 0, 0), SETTINGS)
    assert torch.allclose(head.loss(z, tokens, {}), ((point - tokens) ** 2).mean(-1))
    assert torch.allclose(head.sample(z, z * 0, 1.0, torch.empty(2, 4, 0, 0), SETTINGS), point, atol=1e-6)
