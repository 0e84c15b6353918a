"""Confidence order ("on the fly", MaskGIT 2202.04200, MAGE 2211.09117): reveal the codes the model is surest of.

Every step draws all hidden codes; those drawn with the highest probability are kept, with Gumbel noise on the ranking
that fades to zero at the last step. So the order is a result of generation, which `on_step` alone gets to see.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marcli.model.autoregressive import AutoregressiveModel
from marcli.model.grid import to_latents
from marcli.model.head.base import HeadSampling
from marcli.model.head.cross_entropy import pick
from marcli.model.layers.embed import take
from marcli.sampling.reveal import OnStep
from marcli.sampling.schedule import RevealStep
from marcli.sampling.tape import Tape


def reveal_by_confidence(
    model: AutoregressiveModel,
    *,
    condition: Float[Tensor, "batch width"],
    null: Float[Tensor, "batch width"] | None,
    tape: Tape,
    schedule: list[RevealStep],
    settings: HeadSampling,
    confidence_temperature: float,
    on_step: OnStep | None,
) -> Int[Tensor, "batch 1 side side"]:
    """Generate codes; the tape's uniforms belong to (position, step), its order is only where hidden tokens stand."""
    order, batch_size = tape.order, tape.order.shape[0]
    conditions = condition if null is None else torch.cat([condition, null])
    known = model.no_tokens(batch_size)
    for step in schedule:
        both, orders = (known, order) if null is None else (torch.cat([known, known]), torch.cat([order, order]))
        z = model.predict(both, orders, conditions, num_wanted=model.num_tokens - step.known, cache=None)
        z_null = None if null is None else z[batch_size:]
        log_probs = model.head.log_probs(z[:batch_size], z_null, step.guidance, settings)
        hidden = order[:, step.known :]
        uniform = tape.noise[:, :, step.index].gather(1, hidden.unsqueeze(-1).expand(-1, -1, 2))
        codes = pick(log_probs, uniform[..., 0])
        fading = confidence_temperature * (1 - (step.index + 1) / len(schedule))
        confidence = log_probs.gather(-1, codes).squeeze(-1) + fading * gumbel(uniform[..., 1])
        ranking = confidence.argsort(dim=1, descending=True, stable=True)
        order = torch.cat([order[:, : step.known], hidden.gather(1, ranking)], dim=1)
        known = torch.cat([known, take(codes, ranking)[:, : step.count]], dim=1)
        if on_step is not None:
            on_step(step, known, order)
    return to_latents(take(known, order.argsort(dim=1)), model.patch_size)


def gumbel(uniform: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Standard Gumbel noise from uniforms in [0, 1)."""
    tiny = torch.finfo(uniform.dtype).tiny
    return -(-uniform.clamp(min=tiny).log()).clamp(min=tiny).log()
