"""The generation loop: reveal a few tokens, feed them back, until none is hidden (section 4.2).

This is the plain path, one line per idea; faster engines are tested against it.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from marcli.model.autoregressive import AutoregressiveModel
from marcli.model.grid import to_latents
from marcli.model.head.base import HeadSampling
from marcli.model.layers.embed import take
from marcli.sampling.schedule import RevealStep
from marcli.sampling.tape import Tape

OnStep = Callable[[RevealStep, Shaped[Tensor, "batch known dim"], Int[Tensor, "batch tokens"]], None]


def reveal(
    model: AutoregressiveModel,
    *,
    condition: Float[Tensor, "batch width"],
    null: Float[Tensor, "batch width"] | None,
    tape: Tape,
    schedule: list[RevealStep],
    settings: HeadSampling,
    kv_cache: bool,
    on_step: OnStep | None,
) -> Shaped[Tensor, "batch channels side side"]:
    """Generate latents (or codes) for each class vector, guided away from `null` when it is given."""
    order, batch_size = tape.order, tape.order.shape[0]
    conditions = condition if null is None else torch.cat([condition, null])
    orders = order if null is None else torch.cat([order, order])
    cache = model.backbone.new_cache(len(conditions), like=conditions) if kv_cache else None
    known = model.no_tokens(batch_size)
    for step in schedule:
        both = known if null is None else torch.cat([known, known])
        z = model.predict(both, orders, conditions, num_wanted=step.count, cache=cache)
        z_null = None if null is None else z[batch_size:]
        noise = tape.noise[:, step.known : step.known + step.count]
        new = model.head.sample(z[:batch_size], z_null, step.guidance, noise, settings)
        known = torch.cat([known, new], dim=1)
        if on_step is not None:
            on_step(step, known, order)
    return to_latents(take(known, order.argsort(dim=1)), model.patch_size)
