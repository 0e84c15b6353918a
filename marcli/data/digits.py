"""The 1,797 handwritten digits inside scikit-learn: the data set that needs no network and no disk."""

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from marcli.data.crop import center_crop
from marcli.data.images import ArrayImages

GREY_LEVELS = 16  # the set's own range is 0..16


def open_digits(*, image_size: int, channels: int) -> ArrayImages:
    """Return the digits as uint8 [1797, channels, image_size, image_size]; 8 is their own size.

    A level v of 0..16 becomes round(v * 255 / 16), which `round(x * 16 / 255)` turns back exactly.
    """
    levels, labels = read_digits()
    pixels = np.rint(levels * (255 / GREY_LEVELS)).astype(np.uint8)
    if image_size != pixels.shape[1]:
        pixels = np.stack([np.asarray(center_crop(Image.fromarray(image), image_size)) for image in pixels])
    pixels = np.repeat(pixels[:, None], channels, axis=1)
    return ArrayImages(pixels, labels, class_names=[str(digit) for digit in range(10)])


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return levels [1797, 8, 8] and labels, from scikit-learn's file: importing it takes about as long as torch."""
    file = Path(importlib.util.find_spec("sklearn").origin).with_name("datasets") / "data" / "digits.csv.gz"
    if not file.is_file():
        from sklearn.datasets import load_digits

        digits = load_digits()
        return digits.images, digits.target
    table = np.loadtxt(file, delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
