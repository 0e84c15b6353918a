"""Resizing to the network's input, one function per published convention.

They differ by several grey levels on the same picture (8.5 RMS on noise between the first two), so the convention
belongs to a score's name.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor


def resize_tf1(images: UInt8[Tensor, "batch channels height width"], size: int) -> Float[Tensor, "batch channels s s"]:
    """Bilinear as TensorFlow 1.x did it: source position = target position * scale, no half-pixel offset.

    ADM's suite and torch-fidelity feed Inception this way. Returns float32 grey levels 0..255.
    """
    # Torch's kernel with aligned corners goes from position 0 to in - 1 in out - 1 steps; one more pixel on both sides,
    # the border repeated, turns that scale into in / out.
    padded = F.pad(images.float(), (0, 1, 0, 1), mode="replicate")
    return F.interpolate(padded, size=(size + 1, size + 1), mode="bilinear", align_corners=True)[..., :size, :size]


def resize_half_pixel(
    images: UInt8[Tensor, "batch channels height width"], size: int
) -> Float[Tensor, "batch channels s s"]:
    """Bilinear with half-pixel centres and no antialiasing, as pytorch-fid does it; grey levels 0..255."""
    return F.interpolate(images.float(), size=(size, size), mode="bilinear", align_corners=False).clamp(0, 255)


def resize_pillow_bicubic(
    images: UInt8[Tensor, "batch channels height width"], size: int
) -> Float[Tensor, "batch channels s s"]:
    """Antialiased bicubic in floating point per channel by Pillow, as clean-fid's `clean` mode; clipped to 0..255."""
    planes = images.flatten(0, 1).numpy().astype(np.float32)
    resized = [np.asarray(Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC)) for plane in planes]
    return torch.from_numpy(np.stack(resized).clip(0, 255)).view(*images.shape[:2], size, size)
