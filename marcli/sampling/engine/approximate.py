"""The generation loop with approximations, over any engine's model: what may differ from one AR step to the next.

- fewer diffusion steps the more tokens are known, since less is left to decide (DiSA, 2505.20297);
- no unconditional half while guidance is weak;
- an unconditional transformer run only now and then: its difference from the conditional one changes slowly, so the
  last one is added in between (LazyMAR, 2503.12450);
- between whole runs of the transformer only the tokens that change are computed (see `features`).

Which tokens an AR step reveals is decided before (see `checkerboard`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from marcli.model.autoregressive import AutoregressiveModel
from marcli.model.grid import to_latents
from marcli.model.head.base import HeadSampling
from marcli.model.layers.embed import take
from marcli.recipe.approximate import Approximate
from marcli.sampling.engine.features import WHOLE_AT_FIRST, FeatureCache, share_at
from marcli.sampling.reveal import OnStep
from marcli.sampling.schedule import RevealStep
from marcli.sampling.tape import Tape


@dataclass(frozen=True)
class PlannedStep:
    """One AR step and what is left out of it."""

    step: RevealStep
    settings: HeadSampling
    guided: bool
    refresh: bool  # run the unconditional transformer, rather than reuse its difference
    share: float | None  # of the tokens that the deeper layers of the conditional transformer compute; None: all


def plan(
    schedule: Sequence[RevealStep], settings: HeadSampling, switches: Approximate, *, guided: bool
) -> list[PlannedStep]:
    """Decide every AR step before the first; `guided` is whether there is guidance at all."""
    planned: list[PlannedStep] = []
    since_refresh = since_whole = None
    for step in schedule:
        is_guided = guided and (switches.guidance_from is None or step.guidance >= switches.guidance_from)
        refresh = is_guided and (since_refresh is None or since_refresh + 1 >= (switches.guidance_refresh or 1))
        if is_guided:
            since_refresh = 0 if refresh else since_refresh + 1
        steps = annealed_steps(step.index, len(schedule), settings.diffusion_steps, switches.final_diffusion_steps)
        # A difference that is reused must be known for every hidden token, so all are computed when it is taken.
        whole = since_whole is None or since_whole + 1 >= (switches.feature_refresh or 1)
        whole = whole or step.index < WHOLE_AT_FIRST * len(schedule) or (refresh and bool(switches.guidance_refresh))
        since_whole = 0 if whole else since_whole + 1
        share = None if whole else share_at(step.index, len(schedule))
        planned.append(PlannedStep(step, replace(settings, diffusion_steps=steps), is_guided, refresh, share))
    return planned


def annealed_steps(index: int, num_steps: int, first: int, last: int | None) -> int:
    """Diffusion steps of AR step `index`: from `first` at the first linearly to `last` at the last."""
    if last is None or num_steps == 1:
        return first
    return last + int((num_steps - 1 - index) / (num_steps - 1) * (first - last))


def reveal_approximately(
    model: AutoregressiveModel,
    *,
    condition: Float[Tensor, "batch width"],
    null: Float[Tensor, "batch width"] | None,
    tape: Tape,
    planned: Sequence[PlannedStep],
    reuse: bool,
    features: FeatureCache | None,
    kv_cache: bool,
    on_step: OnStep | None,
) -> Shaped[Tensor, "batch channels side side"]:
    """As `reveal`, step by planned step.

    `reuse` keeps the unconditional difference of every hidden token, `features` those of the conditional transformer.
    """
    order, batch_size = tape.order, tape.order.shape[0]
    conditions = condition if null is None else torch.cat([condition, null])
    cache = model.backbone.new_cache(len(conditions), like=conditions) if kv_cache else None
    known, difference, difference_from = model.no_tokens(batch_size), None, 0
    for now in planned:
        step = now.step
        both = null is not None and now.refresh
        wanted = model.num_tokens - step.known if both and reuse else step.count
        if features is None:
            copies, inputs = (2, conditions) if both else (1, condition)
            orders = order.repeat(copies, 1)
            z = model.predict(known.repeat(copies, 1, 1), orders, inputs, num_wanted=wanted, cache=cache)
            z, z_null = (z[:batch_size], z[batch_size:]) if both else (z, None)
        else:
            inputs = known.to(condition.dtype) if known.is_floating_point() else known
            z = features.predict(inputs, order, condition, num_wanted=wanted, share=now.share)
            z_null = model.predict(known, order, null, num_wanted=wanted, cache=None) if both else None
        if both and reuse:
            difference, difference_from = z_null - z, step.known
            z, z_null = z[:, : step.count], z_null[:, : step.count]
        elif null is not None and now.guided and not both:
            first = step.known - difference_from
            z_null = z + difference[:, first : first + step.count]
        noise = tape.noise[:, step.known : step.known + step.count]
        known = torch.cat([known, model.head.sample(z, z_null, step.guidance, noise, now.settings)], dim=1)
        if on_step is not None:
            on_step(step, known, order)
    return to_latents(take(known, order.argsort(dim=1)), model.patch_size)
