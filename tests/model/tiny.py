"""Tiny systems for tests: every backbone, order and head over 16 tokens."""

import json

import torch
from torch import nn

from marcli.model.build import build_model
from marcli.model.head.base import HeadSampling
from marcli.recipe.schema import Recipe
from marcli.sampling.system import System
from marcli.tokenizer.build import build_tokenizer

BACKBONES = {
    "masked": {"kind": "masked", "width": 32, "encoder_depth": 2, "decoder_depth": 2, "heads": 2, "buffer_size": 4},
    "causal": {"kind": "causal", "width": 32, "depth": 3, "heads": 2},
    "dit": {"kind": "dit", "width": 32, "depth": 2, "heads": 2},
}
HEADS = {
    "diffusion": {"kind": "diffusion", "width": 32, "depth": 2},
    "cross_entropy": {"kind": "cross_entropy"},
    "l2": {"kind": "l2"},
}
COMBINATIONS = [
    ("masked", "random", "diffusion"),
    ("masked", "raster", "diffusion"),
    ("masked", "random", "cross_entropy"),
    ("masked", "confidence", "cross_entropy"),
    ("masked", "random", "l2"),
    ("causal", "raster", "diffusion"),
    ("causal", "random", "diffusion"),
    ("causal", "raster", "cross_entropy"),
    ("causal", "random", "cross_entropy"),
    ("causal", "raster", "l2"),
    ("dit", None, None),
]


def head_settings(**given: object) -> HeadSampling:
    """Settings of a head, the paper's where nothing else is `given`."""
    usual = {"temperature": 1.0, "diffusion_steps": 100, "max_timestep": 999, "clip_denoised": None}
    return HeadSampling(**(usual | {"solver": "ancestral", "guidance_refresh": 1} | given))


def recipe(backbone: str, order: str | None, head: str | None, **sample: object) -> Recipe:
    """A recipe over 8x8 grey images in 16 tokens."""
    codes = head == "cross_entropy"
    if backbone != "dit":
        sample = {"steps": 16 if backbone == "causal" else 6, **sample}
    tree = {
        "name": "tiny",
        "data": {"path": "digits", "image_size": 8, "channels": 1, "num_classes": 10},
        "tokenizer": {"kind": "kmeans", "codebook_size": 24} if codes else {"kind": "pixels", "scale": 1.5},
        "model": {
            "patch_size": 1 if codes else 2,
            "backbone": BACKBONES[backbone],
            "order": order,
            "head": HEADS[head] if head else None,
        },
        "train": {"steps": 2, "batch_size": 4, "lr": 1e-3},
        "sample": {"diffusion_steps": 6, "max_timestep": 950, **sample},
    }
    return Recipe.model_validate_json(json.dumps(tree))


def model(of: Recipe, seed: int = 0) -> nn.Module:
    """The recipe's model in evaluation mode; layers that start at zero are given values, so that all of it acts."""
    torch.manual_seed(seed)
    built = build_model(of)
    for parameter in built.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return built.eval()


def latents(of: Recipe, batch: int, seed: int = 1) -> torch.Tensor:
    """Random latents or codes of the recipe's shape."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, of.latent.channels, of.latent.size, of.latent.size)
    if of.latent.codebook_size is not None:
        return torch.randint(of.latent.codebook_size, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def draws(of: nn.Module, batch: int, num_known: int, seed: int = 2) -> dict[str, torch.Tensor]:
    """Stacked draws of a batch."""
    generator = torch.Generator().manual_seed(seed)
    each = [of.draw(generator, num_known) for _ in range(batch)]
    return {name: torch.stack([draw[name] for draw in each]) for name in each[0]}


def system(of: Recipe, weights: nn.Module | None = None) -> System:
    """A system around the recipe's model, or around `weights`."""
    return System("tiny", of, weights or model(of), build_tokenizer(of, folder=None), "raw", None, None)
