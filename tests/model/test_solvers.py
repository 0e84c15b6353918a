"""The solvers against a distribution whose every denoised value is known: a normal, and against each other."""

import math

import pytest
import torch

from marcli.model.process.gaussian import full_process
from marcli.model.process.solvers import half_log_snr, make_solver, process_for, solver_steps

MEAN, STD = 0.7, 0.3


def exact_eps(process, index, x):
    """E[noise | x_t] for x_0 ~ N(MEAN, STD^2)."""
    alpha, sigma = process.tables["x_from_x0"][index].item(), process.tables["x_from_noise"][index].item()
    return sigma * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)


def solve(name, num_steps, noise, temperature=1.0, clip=None):
    process = process_for(name, full_process("cosine"), num_steps, 950)
    solver = make_solver(name, temperature=temperature, clip=clip)
    x = solver.start(noise)
    for step in solver_steps(name, process):
        x = solver.step(step, x, exact_eps(process, step.index, x), torch.zeros_like(x), torch.randn_like(x))
    return x


def exact(noise):
    """Where the ODE takes x at timestep 950: every quantile to itself."""
    process = full_process("cosine")
    alpha, sigma = (process.tables[name][950].item() for name in ("x_from_x0", "x_from_noise"))
    return MEAN + STD * (noise - alpha * MEAN) / math.sqrt(alpha**2 * STD**2 + sigma**2)


NOISE = torch.linspace(-2.5, 2.5, 101, dtype=torch.float64)


@pytest.mark.parametrize("name", ["ddim", "dpm++2m"])
def test_ode_solvers_converge_to_the_exact_map(name):
    errors = [(solve(name, steps, NOISE) - exact(NOISE)).abs().max().item() for steps in (8, 32, 128)]
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.02


def test_second_order_is_closer_at_few_steps():
    for steps in (6, 10, 20):
        first, second = ((solve(name, steps, NOISE) - exact(NOISE)).abs().max() for name in ("ddim", "dpm++2m"))
        assert second < 0.2 * first


@pytest.mark.parametrize("name", ["ancestral", "ddim", "dpm++2m"])
def test_every_solver_samples_the_distribution(name):
    torch.manual_seed(0)
    x = solve(name, 100, torch.randn(20_000, dtype=torch.float64))
    assert x.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert x.std().item() == pytest.approx(STD, rel=0.05)


def test_temperature_scales_the_starting_noise_and_clipping_bounds_the_end():
    assert torch.equal(solve("ddim", 9, NOISE, temperature=0.5), solve("ddim", 9, 0.5 * NOISE))
    assert solve("dpm++2m", 9, NOISE, clip=0.1).abs().max() <= 0.1


def test_second_order_visits_timesteps_evenly_spaced_in_half_log_snr():
    process = process_for("dpm++2m", full_process("cosine"), 9, 950)
    assert len(process) == 9 and process.timesteps[0] == 0 and process.timesteps[-1] == 950
    widths = half_log_snr(process).diff()
    assert process_for("dpm++2m", full_process("cosine"), 1, 950).timesteps == [950]
    assert (widths / widths.mean() - 1).abs().max() < 0.2


def test_one_step_ends_at_the_denoised_value():
    process = full_process("cosine").respaced(1, 950)
    (step,) = solver_steps("dpm++2m", process)
    assert (step.index, step.timestep) == (0, process.timesteps[0])
    assert (step.from_x, step.from_x0, step.from_change) == (0.0, 1.0, 0.0)
