"""Labelled square pictures by index, wherever they lie.

Opening reads names and labels only; nothing is decoded. A broken picture is therefore found when it is first read. With
`data.on_broken: fail` that stops with its name. With `skip` it is named once by all processes together, and
- `batches` (metrics, tokenizer reports) leaves it out,
- `fetch` (training without a cache) puts the next readable picture **with that picture's label** in its place, so every
  process and every resume still sees the same batch, and no label ever belongs to another picture.
"""

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from marcli.data.crop import BrokenImageError, decode_square, picture_size
from marcli.data.listing import EXTENSIONS, check_no_split, has_extension
from marcli.errors import MarcliError, UsageError
from marcli.recipe.data import Data
from marcli.runtime.home import at_home
from marcli.runtime.once import is_first

logger = logging.getLogger("marcli.data")

SECONDS_BEFORE_A_TRY = (0.0, 0.1, 1.0)


class Pictures(Protocol):
    """Encoded pictures with labels: what a folder, a parquet file and a hub data set have in common."""

    labels: np.ndarray  # int64 [n]
    class_names: list[str] | None
    fingerprint: str  # of the content, wherever it lies

    def name(self, index: int) -> str:
        """What to call the picture in a message."""

    def encoded(self, index: int) -> bytes | Path:
        """The file's bytes, or where it lies."""


class ImageSet:
    """Pictures as uint8 squares; `labels`, `class_names`, `fingerprint` and `skipped` describe them."""

    def __init__(self, pictures: Pictures, *, image_size: int, channels: int, on_broken: str) -> None:
        self.labels = pictures.labels
        self.class_names = pictures.class_names
        self.image_size = image_size
        self.channels = channels
        self.fingerprint = hashlib.sha256(f"{pictures.fingerprint} {image_size} {channels}".encode()).hexdigest()
        self._pictures = pictures
        self._on_broken = on_broken
        self._broken: dict[int, str] = {}
        self._naming = Lock()  # loader threads meet the same picture

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Name and reason of every broken picture met so far, by index."""
        return [(self.name(index), reason) for index, reason in sorted(self._broken.items())]

    def name(self, index: int) -> str:
        """What to call picture `index` in a message."""
        return self._pictures.name(int(index))

    def square(self, index: int) -> np.ndarray:
        """Return picture `index` as uint8 [c, s, s].

        Raises:
            BrokenImageError: the picture is at fault, now and whenever it is read again
            MarcliError: that with on_broken: fail, or a disk or memory that failed at every try
        """
        index = int(index)
        if index in self._broken:
            raise BrokenImageError(self._broken[index])
        try:
            return self._decode(index)
        except BrokenImageError as error:
            name = self.name(index)
            if self._on_broken == "fail":
                raise MarcliError(
                    f"{name} cannot be read ({error}): repair or remove it; training leaves it out with "
                    "data.on_broken=skip, a score never does"
                ) from None
            with self._naming:
                is_known = index in self._broken
                self._broken[index] = str(error)
            if not is_known and is_first(f"skipped {self.fingerprint} {index}"):
                logger.warning("skipped %s: %s", name, error)
            raise

    def _decode(self, index: int) -> np.ndarray:
        """Decode a picture; a failing disk or memory is tried again, then ends the work: the data must not change."""
        for seconds in SECONDS_BEFORE_A_TRY:
            time.sleep(seconds)
            try:
                return decode_square(self._pictures.encoded(index), image_size=self.image_size, channels=self.channels)
            except (OSError, MemoryError) as error:
                failure = error
        raise MarcliError(
            f"{self.name(index)} could not be read at any of {len(SECONDS_BEFORE_A_TRY)} tries "
            f"({getattr(failure, 'strerror', None) or 'not enough memory'}): the picture itself may be sound. Check "
            "the disk, the network mount and the memory, then run the same command again"
        ) from failure

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "batch channels size size"]:
        """Return the pictures of `indices`, broken ones replaced as in `fetch`."""
        return self.fetch(indices)[0]

    def fetch(
        self, indices: Sequence[int]
    ) -> tuple[UInt8[Tensor, "batch channels size size"], Int64[Tensor, " batch"]]:
        """Return pictures and labels of `indices`; a broken one is replaced by the next readable one."""
        used = np.empty(len(indices), dtype=np.int64)
        pixels = np.empty((len(indices), self.channels, self.image_size, self.image_size), dtype=np.uint8)
        for row, index in enumerate(indices):
            used[row], pixels[row] = self._readable(int(index))
        return torch.from_numpy(pixels), torch.from_numpy(self.labels[used])

    def _readable(self, index: int) -> tuple[int, np.ndarray]:
        """Return the first readable picture from `index` on, with its index."""
        for offset in range(len(self)):
            candidate = (index + offset) % len(self)
            try:
                return candidate, self.square(candidate)
            except BrokenImageError:
                continue
        raise self._none_readable()

    def _none_readable(self) -> MarcliError:
        return MarcliError(f"none of the {len(self)} images can be read: check data.path")

    def batches(
        self, batch_size: int, *, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[UInt8[Tensor, "batch channels size size"], Int64[Tensor, " batch"]]]:
        """Yield readable pictures and their labels once each, in order; broken ones are left out.

        Raises MarcliError when all of the data set are broken.
        """
        rows: list[tuple[int, np.ndarray]] = []
        for index in range(len(self)) if indices is None else indices:
            try:
                rows.append((int(index), self.square(index)))
            except BrokenImageError:
                continue
            if len(rows) == batch_size:
                yield self._stack(rows)
                rows = []
        if rows:
            yield self._stack(rows)
        elif len(self._broken) == len(self):
            raise self._none_readable()

    def _stack(self, rows: list[tuple[int, np.ndarray]]) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(np.stack([square for _, square in rows]))
        return pixels, torch.from_numpy(self.labels[[index for index, _ in rows]])


class ArrayImages(ImageSet):
    """Pictures kept in memory as one uint8 array [n, c, s, s]."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, *, class_names: list[str] | None) -> None:
        self.labels = labels.astype(np.int64)
        self.class_names = class_names
        self.channels, self.image_size = pixels.shape[1], pixels.shape[2]
        self.fingerprint = hashlib.sha256(pixels.tobytes() + self.labels.tobytes()).hexdigest()
        self._pixels = torch.from_numpy(np.ascontiguousarray(pixels))
        self._labels = torch.from_numpy(self.labels)
        self._broken = {}

    def name(self, index: int) -> str:
        """What to call picture `index` in a message."""
        return f"picture {index}"

    def square(self, index: int) -> np.ndarray:
        """Return picture `index` as uint8 [c, s, s]."""
        return self._pixels[int(index)].numpy()

    def fetch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return pictures and labels of `indices`."""
        rows = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        return self._pixels[rows], self._labels[rows]


def open_images(data: Data, *, labelled: bool = True) -> ImageSet:
    """Open the images of a recipe without decoding any; raises UsageError in one sentence.

    `data.path` is 'digits', an existing folder or parquet file, or else a hub id. With `labelled` False labels may be
    missing (then 0) or outside `data.num_classes`.
    """
    if data.path == "digits":
        from marcli.data.digits import open_digits

        check_no_split("digits", data.split)
        images = open_digits(image_size=data.image_size, channels=data.channels)
    else:
        from marcli.data.columns import open_hub, open_parquet
        from marcli.data.folders import find_parquet, open_folder

        path = at_home(data.path)
        if path.is_dir():
            parquet = find_parquet(path, split=data.split, image_column=data.image_column)
            if parquet:
                pictures = open_parquet(parquet, data, labelled=labelled)
            else:
                pictures = open_folder(path, split=data.split)
        elif path.is_file() and has_extension(path.name, EXTENSIONS):
            raise UsageError(f"data.path {data.path!r} is one picture: give the folder it lies in")
        elif path.is_file():
            pictures = open_parquet([path], data, labelled=labelled)
        else:
            pictures = open_hub(data, labelled=labelled)
        images = ImageSet(pictures, image_size=data.image_size, channels=data.channels, on_broken=data.on_broken)
    if labelled or len(images) == 0:
        check_labels(images, data)
    return images


def evenly_spread(total: int, num: int) -> list[int]:
    """Return `num` of the numbers below `total` in order, from the first to the last; all where there are fewer.

    Whole numbers all the way, since floating-point ones miss some: in fp32 all above 16.7 million.
    """
    count = min(num, total)
    return [place * (total - 1) // max(1, count - 1) for place in range(count)]


def native_size(data: Data) -> tuple[int, int]:
    """Return short side and channels (1 or 3) of the first readable picture at `data.path`; raises as `open_images`."""
    if data.path == "digits":
        return 8, 1
    pictures = open_images(data, labelled=False)._pictures
    for index in range(len(pictures.labels)):
        try:
            width, height, channels = picture_size(pictures.encoded(index))
            return min(width, height), channels
        except BrokenImageError:
            continue
    raise MarcliError(f"none of the images in {data.path!r} can be read: check data.path")


def check_labels(images: ImageSet, data: Data) -> None:
    """Labels must be 0..num_classes-1; raises UsageError that names the first one which is not."""
    if len(images) == 0:
        raise UsageError(f"data.path {data.path!r} holds no images: check the path and data.split")
    outside = np.flatnonzero((images.labels < 0) | (images.labels >= data.num_classes))
    if len(outside) == 0:
        return
    first = int(outside[0])
    label = int(images.labels[first])
    named = ""
    if images.class_names is not None and 0 <= label < len(images.class_names):
        named = f" ({images.class_names[label]!r})"
    hint = (
        "this split seems to have no labels; choose another data.split"
        if label < 0
        else f"set data.num_classes={int(images.labels.max()) + 1} or remove them"
    )
    raise UsageError(
        f"{len(outside)} of {len(images)} images in {data.path!r} have a label outside 0..{data.num_classes - 1}; "
        f"the first is number {first} with label {label}{named}: {hint}"
    )
