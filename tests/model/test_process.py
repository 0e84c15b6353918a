"""The diffusion process against closed forms, and against an exact denoiser whose answer is known."""

import hashlib
import json
import math

import pytest
import torch

from marcli.model.process.gaussian import (
    GaussianProcess,
    cosine_betas,
    diffuse,
    full_process,
    linear_betas,
    reverse_sample,
)
from marcli.model.process.losses import discretized_log_likelihood, normal_kl, variational_bound


def test_cosine_alpha_bar():
    alpha_bar = torch.cumprod(1 - cosine_betas(), 0)
    t = torch.arange(1, 999, dtype=torch.float64)
    expected = torch.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert torch.allclose(alpha_bar[:998], expected, rtol=1e-9)


def test_linear_betas():
    expected = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    assert linear_betas().tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("steps", [1, 7, 100, 1000])
def test_respacing_keeps_alpha_bar_at_the_kept_times(schedule, steps):
    full = full_process(schedule)
    spaced = full.respaced(steps, 999)
    assert len(spaced) == steps and spaced.timesteps[0] == 0
    assert steps == 1 or spaced.timesteps[-1] == 999
    kept = torch.cumprod(1 - full.betas, 0)[spaced.timesteps]
    assert torch.allclose(torch.cumprod(1 - spaced.betas, 0), kept, rtol=1e-9)


def test_every_number_of_steps_has_the_published_timesteps():
    """The hash is that of the published code's 1,000 lists; at 21 steps a product would round to 500."""
    full = full_process("cosine")
    lists = [full.respaced(steps, 999).timesteps for steps in range(1, 1001)]
    assert [t for t in lists[20] if 450 < t < 550] == [499, 549]
    published = "c6f7236b85606b3d65b8629cb3e34cd96d02669cc0e0a09a4eba87e76a6e56a9"
    assert hashlib.sha256(json.dumps(lists).encode()).hexdigest() == published


def test_largest_timestep_is_clamped_and_duplicates_merged():
    spaced = full_process("cosine").respaced(100, 950)
    assert spaced.timesteps[-1] == 950 and len(set(spaced.timesteps)) == len(spaced) < 100


def test_diffuse_has_the_marginal_of_the_process():
    process = full_process("cosine")
    x0, noise = torch.full((20000, 1), 2.0), torch.randn(20000, 1, generator=torch.Generator().manual_seed(0))
    x = diffuse(process, x0, torch.full((20000,), 500), noise)
    alpha_bar = torch.cumprod(1 - process.betas, 0)[500]
    assert x.mean().item() == pytest.approx(2 * alpha_bar.sqrt().item(), abs=0.03)
    assert x.var().item() == pytest.approx(1 - alpha_bar.item(), rel=0.03)


def test_an_exact_denoiser_of_a_gaussian_generates_that_gaussian():
    """For data N(m, s^2) the best eps is known in closed form; 250 reverse steps must give back m and s."""
    mean, std = 0.7, 0.5
    process = full_process("cosine").respaced(250, 999)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20000, 1, generator=generator)
    alpha_bar = torch.cumprod(1 - process.betas, 0)
    for step in process.reverse_steps():
        a = alpha_bar[step.index].item()
        eps = math.sqrt(1 - a) * (x - math.sqrt(a) * mean) / (a * std**2 + 1 - a)
        noise = torch.randn(x.shape, generator=generator)
        x = reverse_sample(step, x, eps, torch.full_like(x, -1.0), noise, 1.0, None)
    assert x.mean().item() == pytest.approx(mean, abs=0.02)
    assert x.std().item() == pytest.approx(std, rel=0.03)


def test_temperature_scales_the_noise_and_the_last_step_has_none():
    process = full_process("cosine").respaced(10, 950)
    x, zero = torch.ones(4, 2), torch.zeros(4, 2)
    steps = process.reverse_steps()
    cold = reverse_sample(steps[0], x, zero, zero, torch.ones(4, 2), 0.0, None)
    warm = reverse_sample(steps[0], x, zero, zero, torch.ones(4, 2), 1.0, None)
    half = reverse_sample(steps[0], x, zero, zero, torch.ones(4, 2), 0.5, None)
    assert torch.allclose(half - cold, (warm - cold) / 2, rtol=1e-5)
    last = [reverse_sample(steps[-1], x, zero, zero, torch.full((4, 2), n), 1.0, None) for n in (0.0, 9.0)]
    assert torch.equal(*last)


def test_clipping_bounds_the_predicted_x0():
    process = full_process("cosine").respaced(10, 950)
    step = process.reverse_steps()[-1]  # index 0: the mean is x_0 itself
    out = reverse_sample(
        step, torch.full((1, 2), 50.0), torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2), 1.0, 3.0
    )
    assert out.abs().max() <= 3.0 + 1e-5


def test_kl_and_likelihood_against_their_definitions():
    a = torch.distributions.Normal(0.3, 0.7)
    b = torch.distributions.Normal(-0.2, 1.1)
    kl = normal_kl(a.mean, 2 * a.stddev.log(), b.mean, 2 * b.stddev.log())
    assert kl.item() == pytest.approx(torch.distributions.kl_divergence(a, b).item(), rel=1e-5)
    x = torch.linspace(-0.9, 0.9, 7)
    exact = (b.cdf(x + 1 / 255) - b.cdf(x - 1 / 255)).log()
    ours = discretized_log_likelihood(x, b.mean.expand(7), b.stddev.log().expand(7))
    assert torch.allclose(ours, exact, atol=2e-2)


def test_the_bound_vanishes_for_the_true_posterior():
    process = full_process("cosine")
    x0, noise = torch.randn(6, 4).double(), torch.randn(6, 4).double()
    t = torch.tensor([1, 10, 100, 500, 900, 998])
    x = diffuse(process, x0.float(), t, noise.float())
    bound = variational_bound(process, x0.float(), x, t, noise.float(), torch.full((6, 4), -1.0))
    assert bound.abs().max() < 1e-3


def test_a_process_built_under_the_meta_device_is_real():
    with torch.device("meta"):
        betas = cosine_betas()
    assert betas.device.type == "cpu"
    assert GaussianProcess(betas, list(range(1000))).tables["x0_from_x"].isfinite().all()
