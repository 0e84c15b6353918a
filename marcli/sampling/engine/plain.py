"""The plain engine: the published algorithm, step by step, in the model's own modules."""

import copy
from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from marcli.model.autoregressive import AutoregressiveModel
from marcli.recipe.approximate import switched_on
from marcli.recipe.schema import Recipe
from marcli.sampling.confidence import reveal_by_confidence
from marcli.sampling.engine.approximate import plan, reveal_approximately
from marcli.sampling.engine.base import head_sampling, schedule_of
from marcli.sampling.engine.checkerboard import checkerboard_order
from marcli.sampling.engine.features import CachedBackbone, FeatureCache
from marcli.sampling.engine.transformer import FastMaskedBackbone
from marcli.sampling.reveal import OnStep, reveal
from marcli.sampling.tape import Tape, draw_tape


class PlainEngine:
    """`reveal` with a recipe's settings."""

    name = "plain"

    def __init__(self, model: AutoregressiveModel, recipe: Recipe) -> None:
        self.model = model
        self.device = model.null_class.device
        self.take_settings(recipe)

    def take_settings(self, recipe: Recipe) -> None:
        """Sample as `recipe.sample` says from now on."""
        self.recipe = recipe
        self.settings = head_sampling(recipe)
        self.schedule = schedule_of(recipe)
        self.switches = recipe.sample.approximate
        self.planned = None
        if switched_on(self.switches):
            self.planned = plan(self.schedule, self.settings, self.switches, guided=recipe.sample.cfg > 1)

    def under(self, recipe: Recipe) -> "PlainEngine":
        """The same modules under the sampling settings of another recipe of this model."""
        other = copy.copy(self)
        other.take_settings(recipe)
        return other

    @cached_property
    def blocks(self) -> FastMaskedBackbone:
        """The fast blocks, whose steps a feature cache takes apart."""
        return FastMaskedBackbone(self.model.backbone)

    def feature_cache(self) -> FeatureCache:
        """A new one for a batch."""
        return FeatureCache(CachedBackbone(self.blocks))

    def draw_tape(self, *, seed: int, indices: Sequence[int]) -> Tape:
        """Orders and noise of these pictures, on the CPU."""
        tape = draw_tape(self.model, seed=seed, indices=indices, num_steps=len(self.schedule), settings=self.settings)
        return Tape(checkerboard_order(tape.order), tape.noise) if self.switches.order == "checkerboard" else tape

    @torch.inference_mode()
    def latents(
        self, *, labels: Int[Tensor, " batch"], tape: Tape, on_step: OnStep | None
    ) -> Shaped[Tensor, "batch channels side side"]:
        """Generate latents of these classes."""
        guided = self.recipe.sample.cfg > 1
        inputs = dict(
            condition=self.model.condition(labels),
            null=self.model.null_class.expand(len(labels), -1) if guided else None,
            tape=tape,
            on_step=on_step,
        )
        kv_cache = self.recipe.uses_kv_cache
        if self.planned is not None:
            return reveal_approximately(
                self.model,
                planned=self.planned,
                reuse=self.switches.guidance_refresh is not None,
                features=self.feature_cache() if self.switches.feature_refresh else None,
                kv_cache=kv_cache,
                **inputs,
            )
        inputs |= dict(schedule=self.schedule, settings=self.settings)
        if self.recipe.order == "confidence":
            temperature = self.recipe.sample.confidence_temperature
            return reveal_by_confidence(self.model, confidence_temperature=temperature, **inputs)
        return reveal(self.model, kv_cache=kv_cache, **inputs)
