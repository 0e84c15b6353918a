"""The two terms of the diffusion loss: squared error of the noise, and the variational bound of the variance."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marcli.model.process.gaussian import GaussianProcess

HALF_GREY_LEVEL = 1.0 / 255.0  # of 256 levels in [-1, 1]


def diffusion_loss(
    process: GaussianProcess,
    x0: Float[Tensor, "*rows dim"],
    x: Float[Tensor, "*rows dim"],
    t: Int[Tensor, "*rows"],
    noise: Float[Tensor, "*rows dim"],
    prediction: Float[Tensor, "*rows two_dim"],
) -> tuple[Float[Tensor, "*rows"], Float[Tensor, "*rows"]]:
    """Return (mse, vb) per row: eq. 2 of 2406.11838 and L_vlb in bits, mean over channels.

    `prediction` holds eps, then the variance interpolation in [-1, 1]. The bound sees eps detached,
    so only the variance learns from it (Improved DDPM, section 3.1).
    """
    eps, variance = prediction.chunk(2, dim=-1)
    mse = (noise - eps).square().mean(-1)
    return mse, variational_bound(process, x0, x, t, eps.detach(), variance)


def variational_bound(
    process: GaussianProcess,
    x0: Float[Tensor, "*rows dim"],
    x: Float[Tensor, "*rows dim"],
    t: Int[Tensor, "*rows"],
    eps: Float[Tensor, "*rows dim"],
    variance: Float[Tensor, "*rows dim"],
) -> Float[Tensor, "*rows"]:
    """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) in bits per channel; at t = 0 the decoder's likelihood."""
    at_t = {name: table[t].unsqueeze(-1) for name, table in process.on(x.device).items()}
    true_mean = at_t["mean_from_x0"] * x0 + at_t["mean_from_x"] * x
    guess_x0 = at_t["x0_from_x"] * x - at_t["x0_from_eps"] * eps
    mean = at_t["mean_from_x0"] * guess_x0 + at_t["mean_from_x"] * x
    share = (variance + 1) / 2
    log_variance = share * at_t["log_variance_max"] + (1 - share) * at_t["log_variance_min"]
    kl = normal_kl(true_mean, at_t["log_variance_min"], mean, log_variance)
    nll = -discretized_log_likelihood(x0, mean, 0.5 * log_variance)
    return torch.where(t.unsqueeze(-1) == 0, nll, kl).mean(-1) / math.log(2.0)


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL divergence of two diagonal normals, in nats, elementwise."""
    ratio = (log_variance1 - log_variance2).exp() + (mean1 - mean2).square() * (-log_variance2).exp()
    return 0.5 * (log_variance2 - log_variance1 - 1.0 + ratio)


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-probability, in nats, of the bin one grey level wide around x in [-1, 1] (DDPM, eq. 13)."""
    centred, inverse_std = x - mean, (-log_std).exp()
    below = normal_cdf(inverse_std * (centred - HALF_GREY_LEVEL))
    above = normal_cdf(inverse_std * (centred + HALF_GREY_LEVEL))
    inside = log_clamped(above - below)
    return torch.where(x < -0.999, log_clamped(above), torch.where(x > 0.999, log_clamped(1.0 - below), inside))


def log_clamped(probability: Tensor) -> Tensor:
    """Logarithm that stays finite at zero."""
    return probability.clamp(min=1e-12).log()


def normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation of the normal CDF that published bounds are computed with."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
