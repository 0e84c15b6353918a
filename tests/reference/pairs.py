"""Reading reference pairs, and the published constructor's values as one of our models."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from marcli.model.autoregressive import AutoregressiveModel
from marcli.model.backbone.masked import MaskedBackbone
from marcli.model.head.diffusion import DiffusionHead
from marcli.pretrained.official_mar import our_name
from tests.reference.fill import fill

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Pair:
    """One reference: the facts of NAME.json and the arrays of NAME.npz."""

    name: str
    facts: dict
    arrays: dict[str, Tensor]

    @property
    def num_tokens(self) -> int:
        config = self.facts["config"]
        return (config["img_size"] // config["vae_stride"] // config["patch_size"]) ** 2

    @property
    def token_dim(self) -> int:
        return self.facts["config"]["vae_embed_dim"] * self.facts["config"]["patch_size"] ** 2

    @property
    def num_known(self) -> int:
        return self.num_tokens - math.ceil(0.8 * self.num_tokens)


def pair_paths() -> list[Path]:
    """Every NAME.json with a NAME.npz beside it, here and in the folder MARCLI_REFERENCE."""
    folders = [HERE] + [Path(folder) for folder in [os.environ.get("MARCLI_REFERENCE")] if folder]
    return [path for folder in folders for path in sorted(folder.glob("*.json")) if path.with_suffix(".npz").is_file()]


def read_pair(path: Path) -> Pair:
    """Read NAME.json and NAME.npz."""
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return Pair(path.stem, json.loads(path.read_text()), tensors)


def build(pair: Pair) -> AutoregressiveModel:
    """Our model with the pair's filled weights, in evaluation mode."""
    config = pair.facts["config"]
    assert config["encoder_embed_dim"] == config["decoder_embed_dim"]
    width = config["encoder_embed_dim"]
    model = AutoregressiveModel(
        backbone=MaskedBackbone(
            num_tokens=pair.num_tokens,
            token_dim=pair.token_dim,
            codebook_size=None,
            width=width,
            encoder_depth=config["encoder_depth"],
            decoder_depth=config["decoder_depth"],
            heads=config["encoder_num_heads"],
            mlp_ratio=4.0,
            buffer_size=config["buffer_size"],
            dropout=0.1,
        ),
        head=DiffusionHead(
            token_dim=pair.token_dim,
            z_dim=width,
            width=config["diffloss_w"],
            depth=config["diffloss_d"],
            schedule="cosine",
            noise_draws=1,
        ),
        num_tokens=pair.num_tokens,
        token_dim=pair.token_dim,
        patch_size=config["patch_size"],
        num_classes=config["class_num"],
        width=width,
        label_drop=0.1,
        order="random",
        mask_ratio=(0.7, 0.25),
    )
    weights = fill(pair.facts["state_dict"])
    model.load_state_dict({our_name(name): torch.from_numpy(array) for name, array in weights.items()}, strict=True)
    return model.eval()
