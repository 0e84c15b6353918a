"""Weights that depend on nothing but parameter names and shapes, so that no checkpoint has to travel."""

import math
import zlib

import numpy as np


def filled(name: str, shape: list[int]) -> np.ndarray:
    """The float32 array of parameter `name`: normal noise seeded by the name, scaled by its role."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        norm_weight = name.endswith("weight") and ("norm" in name or name.endswith("_ln.weight"))
        return (1.0 if norm_weight else 0.0) + 0.1 * noise
    if name.endswith("weight") and "emb" not in name.split(".")[0]:
        return noise / math.sqrt(math.prod(shape[1:]))
    return 0.5 * noise


def fill(layout: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Arrays for every entry of a layout."""
    return {name: filled(name, shape) for name, shape in layout.items()}
