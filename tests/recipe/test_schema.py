"""Combinations that do not exist are refused when a recipe is read, by a sentence that names the way out."""

import pytest

from marcli.errors import UsageError
from marcli.recipe.reader import read_recipe

MASKED, CAUSAL, DIT, CODES = (
    f"debug/{name}" for name in ("head_diffusion", "backbone_causal", "backbone_dit", "head_cross_entropy")
)


@pytest.mark.parametrize(
    ("spec", "overrides", "words"),
    [
        (MASKED, ["model.patch_size=3"], "model.patch_size 3 does not divide the 8x8 latents"),
        (CODES, ["model.patch_size=2"], "model.patch_size must be 1 over a tokenizer that outputs codes"),
        (MASKED, ["model.backbone.heads=3"], "model.backbone.heads 3 does not divide its width"),
        (DIT, ["model.head={kind: l2}"], "'dit' denoises the whole grid itself: leave model.head out"),
        (DIT, ["tokenizer={kind: kmeans, codebook_size: 8}", "model.patch_size=1"], "'dit' needs continuous latents"),
        (MASKED, ["model.head=null"], "model.head is missing: give it a kind"),
        (MASKED, ["model.head={kind: cross_entropy}"], "predicts codes, but tokenizer.kind 'pixels' gives continuous"),
        (CODES, ["model.head={kind: l2}"], "'l2' predicts continuous tokens, but the tokenizer gives codes"),
        (DIT, ["model.order=random"], "model.order has no meaning for model.backbone.kind 'dit'"),
        (MASKED, ["model.order=confidence"], "which model.head.kind 'diffusion' does not give"),
        (
            CODES,
            ["model.order=confidence", "model.backbone={kind: causal, width: 32, depth: 1, heads: 2}"],
            "model.order 'confidence' needs model.backbone.kind 'masked'",
        ),
        (DIT, ["sample.steps=4"], "sample.steps counts AR steps, and model.backbone.kind 'dit' has none"),
        (CAUSAL, ["sample.steps=4"], "a causal backbone predicts one token per step: sample.steps must be 16"),
        (MASKED, ["sample.kv_cache=true"], "sample.kv_cache needs model.backbone.kind 'causal'"),
        (MASKED, ["sample.diffusion_steps=1"], "a single step would start and end at the cleanest timestep"),
        (MASKED, ["sample.cfg=2.0", "train.label_drop=0.0"], "sample.cfg above 1 needs a model trained with"),
        (MASKED, ["sample.approximate.final_diffusion_steps=11"], "final_diffusion_steps is 11, and diffusion steps"),
        (MASKED, ["sample.steps=1", "sample.approximate.order=checkerboard"], "needs at least 2 AR steps"),
        (MASKED, ["train.epochs=1", "train.steps=1"], "give exactly one of train.steps and train.epochs"),
        (MASKED, ["train.epochs=null", "train.steps=null"], "give exactly one of train.steps and train.epochs"),
        (MASKED, ["train.warmup_epochs=1", "train.warmup_steps=1"], "give at most one of train.warmup_steps"),
    ],
)
def test_what_cannot_be_is_refused(spec: str, overrides: list[str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_recipe(spec, overrides)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "overrides"),
    [
        (CAUSAL, ["sample.steps=16"]),
        (CAUSAL, ["sample.kv_cache=true"]),
        (CODES, ["model.order=confidence"]),
        (MASKED, ["sample.cfg=1.0", "train.label_drop=0.0"]),
        (MASKED, ["sample.approximate.final_diffusion_steps=10"]),
        (MASKED, ["sample.steps=2", "sample.approximate.order=checkerboard"]),
    ],
)
def test_what_borders_on_it_is_not(spec: str, overrides: list[str]) -> None:
    assert read_recipe(spec, overrides).name.startswith("debug")
