"""The yardstick wastes time, but computes the algorithm."""

import torch

from marcli.model.process.gaussian import reverse_sample
from marcli.model.process.solvers import solver_steps
from tests.benchmarks import as_published
from tests.benchmarks.as_published import AsPublished
from tests.model.tiny import model, recipe


def yardstick():
    of = recipe("masked", "random", "diffusion", cfg=3.0, diffusion_steps=5, temperature=0.9)
    return AsPublished(model(of), of)


@torch.inference_mode()
def test_z_is_that_of_the_plain_model():
    made = yardstick()
    plain, n = made.model, made.model.num_tokens
    order = torch.stack([torch.randperm(n), torch.randperm(n)])
    tokens, condition = torch.randn(2, n, plain.token_dim), plain.class_embed(torch.tensor([1, 2]))
    hidden = torch.ones(2, n).scatter(1, order[:, :5], 0.0)
    known = tokens.gather(1, order[:, :5, None].expand(-1, -1, plain.token_dim))
    expected = plain.predict(known, order, condition, num_wanted=n - 5, cache=None)
    z = made.z_of_all(tokens, hidden, condition).gather(1, order[:, 5:, None].expand_as(expected))
    assert (z - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.inference_mode()
def test_a_diffusion_step_is_that_of_the_plain_head(monkeypatch):
    made = yardstick()
    head, x = made.model.head, torch.randn(2, made.model.token_dim)
    z = torch.randn(4, made.model.null_class.shape[-1])
    noise = torch.randn(4, made.model.token_dim)
    monkeypatch.setattr(torch, "randn_like", lambda like: noise)
    for step in solver_steps("ancestral", made.process)[::2]:
        t = torch.full((4,), step.index)
        original = torch.tensor(made.process.timesteps)[t]
        both = torch.cat([x, x])
        given = made.reverse(both, t, made.denoise(both, original, z, torch.tensor(2.0)))[:2]
        eps, variance = head.denoiser(both, original, z).chunk(2, dim=-1)
        eps = eps[2:] + 2.0 * (eps[:2] - eps[2:])
        expected = reverse_sample(step, x, eps, variance[:2], noise[:2], 0.9, None)
        assert (given - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_loss_is_that_of_the_plain_head(monkeypatch):
    head, rows = yardstick().model.head, 50
    z, x0, noise = (torch.randn(rows, width) for width in (head.denoiser.z_embed.in_features, *[head.token_dim] * 2))
    t = torch.randint(1000, (rows,))
    monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: t)
    monkeypatch.setattr(torch, "randn_like", lambda like: noise)
    given = as_published.loss(head, z, x0)
    expected = head.loss(z[None], x0[None], {"t": t[None, :, None], "noise": noise[None, :, None]})[0]
    assert (given - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_it_generates():
    made = yardstick()
    tokens = made.tokens(torch.tensor([1, 7]))
    assert tokens.shape == (2, made.model.num_tokens, made.model.token_dim)
    assert tokens.isfinite().all() and tokens.abs().min() > 0
