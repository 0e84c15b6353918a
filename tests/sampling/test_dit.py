"""The DiT's reverse diffusion against a loop that is written out."""

import torch

from marcli.sampling.engine.dit import DiTEngine
from marcli.sampling.tape import picture_generator
from tests.model.tiny import model, recipe

LABELS = torch.tensor([1, 7, 4])


def test_generation_is_the_loop_of_the_paper():
    settings = dict(cfg=3.0, diffusion_steps=5, max_timestep=900, temperature=0.7, clip_denoised=1.5)
    of = recipe("dit", None, None, **settings)
    of = of.model_copy(
        update={
            "model": of.model.model_copy(
                update={"backbone": of.model.backbone.model_copy(update={"guidance_channels": 1, "schedule": "linear"})}
            )
        }
    )
    dit = model(of)
    engine = DiTEngine(dit, of)
    made = engine.latents(labels=LABELS, tape=engine.draw_tape(seed=3, indices=[5, 6, 7]), on_step=None)

    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    whole = torch.cumprod(1 - betas, 0)
    times = [0, 250, 500, 749, 900]
    alpha_bar = whole[times]
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    beta = 1 - alpha_bar / before
    noise = torch.stack([torch.randn(64, 6, 1, generator=picture_generator(3, index)) for index in (5, 6, 7)])
    x = noise[:, :, 0]
    with torch.no_grad():
        for i, k in enumerate(reversed(range(5))):
            t = torch.full((3,), times[k])
            eps, share = dit.denoise(x, t, LABELS).chunk(2, -1)
            null = dit.denoise(x, t, torch.full((3,), 10)).chunk(2, -1)[0]
            eps = null + 3.0 * (eps - null)
            x0 = ((x - (1 - alpha_bar[k]).sqrt() * eps) / alpha_bar[k].sqrt()).clamp(-1.5, 1.5)
            mean = beta[k] * before[k].sqrt() / (1 - alpha_bar[k]) * x0
            mean = mean + (1 - before[k]) * (1 - beta[k]).sqrt() / (1 - alpha_bar[k]) * x
            if k == 0:
                x = mean
                break
            smallest = (beta[k] * (1 - before[k]) / (1 - alpha_bar[k])).log()
            log_variance = (share + 1) / 2 * beta[k].log() + (1 - share) / 2 * smallest
            x = (mean + 0.7 * (log_variance / 2).exp() * noise[:, :, i + 1]).float()
    expected = x.transpose(1, 2).unflatten(2, (8, 8))
    assert (made - expected).abs().max() <= 1e-5 * expected.abs().max()
