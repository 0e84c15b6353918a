"""The cost model against operations counted while tiny models run, and against the published totals."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from marcli.bench.autoencoder_cost import KL8, KL16, decoding, encoding, vq16
from marcli.bench.cost import Cost, denoising_steps, hidden_counts, plain_cost, published_cost
from marcli.bench.roofline import Machine, weight_seconds
from marcli.bench.stand_in import random_vq
from marcli.bench.training_cost import mean_hidden, recipe_distribution, training_flops
from marcli.model.build import build_model
from marcli.model.order import reveal_counts
from marcli.model.process.gaussian import full_process
from marcli.recipe.schema import Recipe
from marcli.recipe.tokenizer import VQTokenizer
from marcli.sampling.engine.build import build_engine
from marcli.sampling.system import System
from marcli.tokenizer.base import Tokenizer

MASKED = {"kind": "masked", "width": 64, "encoder_depth": 2, "decoder_depth": 3, "heads": 4, "buffer_size": 3}
CAUSAL = {"kind": "causal", "width": 64, "depth": 3, "heads": 4}
DIFFUSION = {"kind": "diffusion", "width": 96, "depth": 2}
CODES = {"kind": "kmeans", "patch_size": 2, "codebook_size": 128}
DIT = {"kind": "dit", "width": 64, "depth": 3, "heads": 4}
LATENTS = {"kind": "kmeans", "patch_size": 2, "output": "latents"}


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Count operations, attention's as two products, for not every version of torch counts its fused kernel."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


def recipe_of(*, backbone, head, tokenizer, order=None, image_size=12, patch_size=1, **sample) -> Recipe:
    """A recipe on 3-channel pictures."""
    return Recipe.model_validate_json(
        json.dumps(
            {
                "name": "cost",
                "data": {"path": "somewhere", "image_size": image_size, "num_classes": 10},
                "tokenizer": tokenizer,
                "model": {"backbone": backbone, "head": head, "order": order, "patch_size": patch_size},
                "train": {"steps": 1, "batch_size": 4, "lr": 1e-4},
                "sample": sample,
            }
        )
    )


def published_recipe(width, depth, head_width, head_depth, steps) -> Recipe:
    """MAR-B, L or H on 256 x 256 with guidance."""
    backbone = {"kind": "masked", "width": width, "encoder_depth": depth, "decoder_depth": depth, "heads": 16}
    head = {"kind": "diffusion", "width": head_width, "depth": head_depth}
    return recipe_of(backbone=backbone, head=head, tokenizer={"kind": "kl16"}, image_size=256, steps=steps, cfg=3.0)


def part(cost: Cost, name: str) -> float:
    """Operations of one image in `encoder`, `decoder`, `head` or `tokenizer`."""
    return sum(component.flops for key, component in cost.components.items() if key.split("/")[0] == name)


B, L, H = (768, 12, 1024, 6), (1024, 16, 1280, 8), (1280, 20, 1536, 12)
TERA = 1e12


@pytest.mark.parametrize(
    ("size", "steps", "encoder", "decoder", "head", "total"),
    [
        (B, 64, 3.53, 7.47, 3.66, 14.9),
        (L, 64, 8.29, 17.39, 7.39, 33.3),
        (H, 64, 16.1, 33.6, 15.5, 65.4),
        (B, 256, 17.5, 29.9, 3.66, 51.2),
        (L, 256, 40.9, 69.6, 7.39, 118),
        (H, 256, 79.3, 134.5, 15.5, 230),
    ],
)
def test_published_sizes(size, steps, encoder, decoder, head, total):
    recipe = published_recipe(*size, steps)
    cost = published_cost(recipe)
    counted = {"encoder": encoder, "decoder": decoder, "head": head, "tokenizer": 0.25}
    for name, value in counted.items():
        assert part(cost, name) / TERA == pytest.approx(value, rel=0.02)
    assert cost.flops / TERA == pytest.approx(total, rel=0.005)


def test_dit_xl_2():
    backbone = {"kind": "dit", "width": 1152, "depth": 28, "heads": 16}
    recipe = recipe_of(backbone=backbone, head=None, tokenizer={"kind": "kl8"}, image_size=256, patch_size=2)
    one_pass = part(published_cost(recipe), "decoder") / denoising_steps(100, 999)
    assert one_pass / 2e9 == pytest.approx(118.64, rel=0.01)  # multiply-adds, as its authors state them


@pytest.mark.parametrize(
    "guided",
    [
        published_recipe(*B, 64),
        recipe_of(backbone=CAUSAL, head=DIFFUSION, tokenizer=LATENTS, cfg=3.0),
        recipe_of(backbone=DIT, head=None, tokenizer=LATENTS, cfg=3.0),
    ],
)
def test_guidance_doubles_everything_but_the_tokenizer(guided):
    single = guided.model_copy(update={"sample": guided.sample.model_copy(update={"cfg": 1.0})})
    for name, component in published_cost(guided).components.items():
        factor = 1 if name.startswith("tokenizer/") else 2
        assert component.flops == factor * published_cost(single).components[name].flops, name


@pytest.mark.parametrize(
    ("backbone", "head", "tokenizer", "extra", "passes", "head_passes"),
    [
        (MASKED, DIFFUSION, LATENTS, {"steps": 5, "diffusion_steps": 6}, 5, 30),
        (CAUSAL, DIFFUSION, LATENTS, {"diffusion_steps": 3}, 36, 108),
        (CAUSAL, {"kind": "cross_entropy"}, CODES, {}, 36, 36),
        (MASKED, {"kind": "l2"}, LATENTS, {"steps": 4}, 4, 4),
        (DIT, None, LATENTS, {"diffusion_steps": 4}, 4, 0),
    ],
)
def test_every_weight_is_read_in_every_pass(backbone, head, tokenizer, extra, passes, head_passes):
    recipe = recipe_of(backbone=backbone, head=head, tokenizer=tokenizer, cfg=3.0, **extra)
    expected = 0
    for name, layer in build_model(recipe).named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            expected += layer.weight.numel() * (head_passes if name.startswith("head.") else passes)
    cost = plain_cost(recipe, batch_size=8)
    assert cost.weight_reads() == expected
    seconds = weight_seconds(cost, Machine(1.0, bytes_per_second=1e3), batch_size=8, bytes_per_parameter=2)
    assert seconds == pytest.approx(expected * 2 / 8 / 1e3)


@pytest.mark.parametrize("steps", [1, 7, 16, 64, 256])
def test_hidden_counts_are_the_models(steps):
    hidden = hidden_counts(256, steps)
    assert [before - after for before, after in pairwise(hidden)] == reveal_counts(256, steps)


@pytest.mark.parametrize(("steps", "largest"), [(1, 999), (10, 999), (100, 950), (250, 950), (1000, 700)])
def test_denoising_steps_are_the_processs(steps, largest):
    assert denoising_steps(steps, largest) == len(full_process("cosine").respaced(steps, largest))


@pytest.mark.parametrize(
    ("backbone", "head", "tokenizer", "order"),
    [
        (MASKED, DIFFUSION, LATENTS, None),
        (MASKED, {"kind": "cross_entropy"}, CODES, None),
        (MASKED, {"kind": "l2"}, LATENTS, None),
        (CAUSAL, DIFFUSION, LATENTS, None),
        (CAUSAL, {"kind": "cross_entropy"}, CODES, "random"),
        (DIT, None, LATENTS, None),
    ],
)
def test_training_step_as_counted(backbone, head, tokenizer, order, monkeypatch):
    recipe = recipe_of(backbone=backbone, head=head, tokenizer=tokenizer, order=order)
    model = build_model(recipe)
    generator = torch.Generator().manual_seed(0)
    batch = 4
    hidden = round(mean_hidden(recipe))
    num_known = recipe.num_tokens - hidden
    draws = [model.draw(generator, num_known) for _ in range(batch)]
    stacked = {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}
    shape = (batch, recipe.latent.channels, recipe.latent.size, recipe.latent.size)
    codes = recipe.latent.codebook_size
    latents = torch.randn(shape) if codes is None else torch.randint(codes, shape)
    # A fused attention computes its scores again in backward; such recomputation is not counted as work.
    with counting() as counter:
        model(latents, torch.zeros(batch, dtype=torch.long), stacked, num_known).mean().backward()
    total = counter.get_total_flops() / batch
    assert training_flops(recipe) == pytest.approx(total, rel=0.01)
    monkeypatch.setattr("marcli.bench.training_cost.recipe_distribution", lambda recipe: ((hidden, 1.0),))
    assert training_flops(recipe) == pytest.approx(total, rel=1e-9)


def test_as_many_tokens_are_hidden_in_training_as_are_drawn():
    recipe = recipe_of(backbone=MASKED, head=DIFFUSION, tokenizer=LATENTS)
    model, generator = build_model(recipe), torch.Generator().manual_seed(0)
    drawn = [recipe.num_tokens - model.num_known(generator) for _ in range(4000)]
    counts = [drawn.count(hidden) / 4000 for hidden in range(recipe.num_tokens + 1)]
    shares = dict(recipe_distribution(recipe))
    assert sum(shares.values()) == pytest.approx(1.0)
    assert counts == pytest.approx([shares.get(hidden, 0.0) for hidden in range(recipe.num_tokens + 1)], abs=0.02)
    assert sum(drawn) / 4000 == pytest.approx(mean_hidden(recipe), abs=0.15)


def test_autoencoder_weights_and_operations():
    # 66,456,019 parameters with biases and norms (shared with diffusers); 0.25 and 0.138 TFLOP at 256 pixels
    decode, encode = decoding(KL16, 16, 3), encoding(KL16, 256, 3)
    assert decode.flops / TERA == pytest.approx(0.25, rel=0.01)
    assert encode.flops / TERA == pytest.approx(0.138, rel=0.01)
    assert decode.parameters + encode.parameters == pytest.approx(66_456_019, rel=0.002)


@pytest.mark.parametrize(("layout", "blocks"), [(KL16, 16), (KL8, 8)])
def test_autoencoder_as_counted(layout, blocks):
    from diffusers import AutoencoderKL

    attended = layout.encoder_attention
    levels = len(layout.channels)
    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * (levels - 1)
            + ["AttnDownEncoderBlock2D" if attended else "DownEncoderBlock2D"],
            up_block_types=["UpDecoderBlock2D"] * levels,
            block_out_channels=layout.channels,
            layers_per_block=2,
            latent_channels=layout.latent_channels,
        )
        image = torch.empty(1, 3, 64, 64)
        latents = torch.empty(1, layout.latent_channels, 64 // blocks, 64 // blocks)
        with counting() as counter, torch.no_grad():
            vae.encode(image)
        assert encoding(layout, 64, 3).flops == pytest.approx(counter.get_total_flops(), rel=1e-9)
        with counting() as counter, torch.no_grad():
            vae.decode(latents)
        assert decoding(layout, 64 // blocks, 3).flops == pytest.approx(counter.get_total_flops(), rel=1e-9)


@pytest.mark.parametrize("channels", [8, 256])
def test_vq16_as_counted(channels):
    section = VQTokenizer(kind="vq16", channels=channels)
    with torch.device("meta"):
        vq = random_vq(section)
        with counting() as counter, torch.no_grad():
            vq.decode(torch.empty(1, channels, 8, 8), force_not_quantize=True)
    assert decoding(vq16(section), 8, 3).flops == pytest.approx(counter.get_total_flops(), rel=1e-9)


def test_a_masked_model_that_knows_nothing_in_training_is_priced():
    nothing_known = recipe_of(backbone={**MASKED, "mask_ratio_min": 1.0}, head=DIFFUSION, tokenizer=LATENTS)
    assert mean_hidden(nothing_known) == nothing_known.num_tokens
    nearly = recipe_of(backbone={**MASKED, "mask_ratio_min": 0.999}, head=DIFFUSION, tokenizer=LATENTS)
    assert training_flops(nothing_known) == pytest.approx(training_flops(nearly), rel=1e-3)


def test_a_dit_embeds_time_once_per_block_and_once_more():
    """On four tokens the embeddings weigh enough to be seen."""
    recipe = recipe_of(backbone=DIT, head=None, tokenizer=LATENTS, image_size=4, diffusion_steps=4)
    model = build_model(recipe).eval()
    tokens = torch.zeros(1, recipe.num_tokens, recipe.token_dim)
    with counting() as counter, torch.no_grad():
        model.denoise(tokens, torch.tensor([3]), torch.tensor([0]))
    assert part(published_cost(recipe), "decoder") / 4 == pytest.approx(counter.get_total_flops(), rel=1e-9)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize(
    ("backbone", "head", "tokenizer", "order", "extra"),
    [
        (MASKED, DIFFUSION, LATENTS, None, {"steps": 5, "diffusion_steps": 6}),
        (MASKED, DIFFUSION, LATENTS, None, {"steps": 36, "diffusion_steps": 10, "max_timestep": 700}),
        (MASKED, {"kind": "cross_entropy"}, CODES, None, {"steps": 9}),
        (MASKED, {"kind": "cross_entropy"}, CODES, "confidence", {"steps": 9}),
        (MASKED, {"kind": "l2"}, LATENTS, None, {"steps": 4}),
        (CAUSAL, DIFFUSION, LATENTS, None, {"diffusion_steps": 3}),
        (CAUSAL, {"kind": "cross_entropy"}, CODES, "random", {}),
        (CAUSAL, {"kind": "cross_entropy"}, CODES, None, {"kv_cache": False}),
        (DIT, None, LATENTS, None, {"diffusion_steps": 4}),
    ],
)
def test_sampling_as_counted(backbone, head, tokenizer, order, extra, cfg):
    recipe = recipe_of(backbone=backbone, head=head, tokenizer=tokenizer, order=order, cfg=cfg, **extra)
    system = System("", recipe, build_model(recipe).eval(), Tokenizer(recipe.latent, scale=1.0), "raw", None, None)
    engine = build_engine(system, name="plain", device=torch.device("cpu"), precision="fp32")
    batch = 2
    tape = engine.draw_tape(seed=0, indices=range(batch))
    with counting() as counter:
        engine.latents(labels=torch.zeros(batch, dtype=torch.long), tape=tape, on_step=None)
    counted = counter.get_total_flops() / batch
    assert plain_cost(recipe, batch_size=batch).flops == pytest.approx(counted, rel=1e-9)
