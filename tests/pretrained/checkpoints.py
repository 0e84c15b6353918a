"""Checkpoints in the authors' layout, filled from names and shapes, at any size."""

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from marcli.pretrained.official_mar import MarArchitecture, layout
from tests.reference.fill import fill

# a published width, so that the number of heads is known, and little else
SMALL = MarArchitecture(
    width=768, encoder_depth=1, decoder_depth=1, head_width=64, head_depth=2, num_classes=10, num_tokens=16
)
TINY = MarArchitecture(
    width=24, encoder_depth=1, decoder_depth=2, head_width=16, head_depth=2, num_classes=10, num_tokens=16
)


def filled(architecture: MarArchitecture) -> dict[str, Tensor]:
    """Every tensor of the authors' model."""
    arrays = fill({name: list(shape) for name, shape in layout(architecture).items()})
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def save_checkpoint(path: Path, raw: Mapping[str, Tensor], averaged: Mapping[str, Tensor], **args: object) -> Path:
    """Write `checkpoint-last.pth` as the authors do, command line included."""
    args = {"model": "mar_base", "vae_stride": 16, "patch_size": 1, "diffloss_w": 1024, **args}
    content = {
        "model": dict(raw),
        "model_ema": dict(averaged),
        "optimizer": {"state": {}, "param_groups": [{"lr": 8e-4, "betas": (0.9, 0.95)}]},
        "epoch": 799,
        "args": argparse.Namespace(**args),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path
