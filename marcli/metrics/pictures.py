"""Pictures to be measured, by index: a folder, an npz as ADM's suite reads it, or a data set of `marcli.data`.

Nothing is skipped and nothing is resized in silence. A broken picture or one of another size stops the measurement with
its name, because a score of "nearly all" pictures is not a score.
"""

import hashlib
import math
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.lib import format as npy
from torch import Tensor

from marcli.data.crop import BrokenImageError, decode_square, picture_size
from marcli.data.images import ImageSet, open_images
from marcli.data.listing import EXTENSIONS, files_under, is_parquet
from marcli.errors import MarcliError, UsageError
from marcli.recipe.data import Data
from marcli.runtime.atomic import sha256_file
from marcli.runtime.home import at_home

BAD_ARCHIVE = (ValueError, OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile, zipfile.LargeZipFile)
SAMPLE_NAME = re.compile(r"\d{6,}\.png")


@runtime_checkable
class PictureSource(Protocol):
    """Pictures of one size in a fixed order.

    `fingerprint` is the sha256 of the file of an npz. Of folders and data sets it is a hash of crop, names, sizes and
    times of change (and labels, where there are any); of data sets that are no files here, of sizes and labels.
    `mixed` says whether the first n are a fair choice; sets in class order are thinned evenly instead.
    """

    name: str
    fingerprint: str
    image_size: int
    mixed: bool

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "batch channels size size"]:
        """Return pictures as they are stored; raises MarcliError naming a broken one. Called from threads."""


def open_pictures(place: str, *, image_size: int | None) -> PictureSource:
    """Open a folder of images, an npz with `arr_0`, or a data set ('digits', parquet, hub id).

    With `image_size`, folders and data sets are cropped as for training; without it, folders are taken as they are.
    Raises UsageError when there is nothing to read.
    """
    path = at_home(place)
    if path.suffix == ".npz":
        return ArchivePictures(path)
    if path.is_dir():
        files = list_images(path)
        if files:
            return FolderPictures(path, files, crop_to=image_size)
        if not files_under(path, {".parquet"}):
            raise UsageError(f"{path} holds no images: check the path.")
    if path.is_file() and not is_parquet(path):
        raise UsageError(f"{place} is no folder, npz or parquet file of pictures: give one of these.")
    if place != "digits" and image_size is None:
        if not path.exists() and place.count("/") != 1:
            raise UsageError(f"There is no {place}: give a folder, an npz, a parquet file, a hub id or 'digits'.")
        raise UsageError(f"{place} is a data set: give --image-size, the side to which its pictures are cropped.")
    data = Data(path=place, image_size=image_size or 8, num_classes=1, on_broken="fail")
    return DataSetPictures(data, labelled=False)


def training_pictures(data: Data) -> "DataSetPictures":
    """Open the pictures that a recipe trains on; a broken one stops the measurement."""
    return DataSetPictures(data.model_copy(update={"on_broken": "fail"}), labelled=True)


def chosen_indices(source: PictureSource, num: int | None) -> np.ndarray:
    """Return which `num` pictures count (None: all); raises UsageError when there are fewer, or a single one."""
    total = len(source)
    if total < 2:
        raise UsageError(f"{source.name} holds one picture, and statistics need at least 2: give more pictures.")
    if num is None or num == total:
        return np.arange(total)
    if num > total:
        raise UsageError(f"--num asks for {num:,} pictures, but {source.name} holds {total:,}.")
    return np.arange(num) if source.mixed else np.arange(num) * total // num


def list_images(folder: Path) -> list[Path]:
    """Return the images under `folder` by name; of the folder of `marcli sample` the pictures without the grid.

    As in training, links to folders are followed and hidden entries are left out.
    """
    files = [Path(file) for file in files_under(folder, EXTENSIONS)]
    if (folder / "samples.json").is_file():
        files = [path for path in files if SAMPLE_NAME.fullmatch(path.name)]
    return files


def stamp_of(files: Iterable[Path], root: Path) -> str:
    """Return a hash of names, sizes and times of change: whatever rewrites a file changes it, without reading any."""
    digest = hashlib.sha256()
    for path in files:
        try:
            status = path.stat()
        except FileNotFoundError:
            status = path.lstat()  # a link to nothing, which is found when it is read
        digest.update(os.fsencode(path.relative_to(root)))
        digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


class FolderPictures:
    """Image files, all square and of one size unless they are cropped."""

    def __init__(self, folder: Path, files: list[Path], *, crop_to: int | None) -> None:
        self.name, self._files, self._crop_to = str(folder), files, crop_to
        self.mixed = all(path.parent == folder and SAMPLE_NAME.fullmatch(path.name) for path in files)
        width, height = (crop_to, crop_to) if crop_to else size_of(files[0])
        if width != height:
            raise MarcliError(
                f"{files[0]} is {width}x{height} pixels, and pictures must be square: --image-size crops all of them "
                "as training does."
            )
        self.image_size = width
        if crop_to is not None:
            self._refuse_enlarging(crop_to)
        self.fingerprint = hashlib.sha256(f"{crop_to} {stamp_of(files, folder)}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._files)

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "batch 3 size size"]:
        """Return pictures in RGB."""
        return torch.from_numpy(np.stack([self._picture(self._files[index]) for index in indices]))

    def _picture(self, path: Path) -> np.ndarray:
        if self._crop_to is None:
            width, height = size_of(path)
            if width != height or width != self.image_size:
                raise MarcliError(
                    f"{path} is {width}x{height} pixels, but {self._files[0].name} is {self.image_size} wide: one set "
                    "must be square and of one size. --image-size crops all pictures as training does."
                )
        try:
            return decode_square(path, image_size=self.image_size, channels=3)
        except BrokenImageError as error:
            raise broken(path, error) from None

    def _refuse_enlarging(self, crop_to: int) -> None:
        """Raise UsageError when even the largest of 16 pictures is smaller than the crop."""
        some = self._files[:: max(1, len(self._files) // 16)]
        largest = max(min(size_of(path)) for path in some)
        if largest < crop_to:
            raise UsageError(
                f"The pictures in {self.name} are at most {largest} pixels wide, but {crop_to} are needed: "
                "enlarged pictures would be measured, not these. Take a set of that resolution."
            )


def size_of(path: Path) -> tuple[int, int]:
    """Return width and height of a picture; raises MarcliError for a broken one."""
    try:
        return picture_size(path)[:2]
    except BrokenImageError as error:
        raise broken(path, error) from None


def broken(path: Path, error: BrokenImageError) -> MarcliError:
    """The sentence about a picture that cannot be read."""
    return MarcliError(f"{path} cannot be read ({error}): repair or remove it; no score leaves a picture out.")


class DataSetPictures:
    """A data set of `marcli.data`, cropped as for training; with `labelled` False it needs no classes."""

    def __init__(self, data: Data, *, labelled: bool) -> None:
        self._images: ImageSet = open_images(data, labelled=labelled)
        self.name, self.image_size, self.mixed = data.path, data.image_size, False
        self.fingerprint = self._images.fingerprint
        # That one is the same for a copy elsewhere, so it does not see a file rewritten at equal length.
        if (path := at_home(data.path)).exists():
            files = [Path(file) for file in files_under(path)] if path.is_dir() else [path]
            self.fingerprint = hashlib.sha256(f"{self.fingerprint} {stamp_of(files, path)}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "batch channels size size"]:
        """Return pictures with the channels of the data set."""
        return self._images.read(indices)


class ArchivePictures:
    """`arr_0` of an npz, uint8 [n, h, w, 1 or 3]; not copied into memory when it is stored uncompressed."""

    def __init__(self, path: Path) -> None:
        self.name, self._images = str(path), read_pictures(path)
        self.mixed = not in_class_order(read_arrays(path, ["arr_1"]).get("arr_1"))  # ADM's labels
        count, height, width, channels = self._images.shape
        if height != width or channels not in (1, 3) or count == 0:
            raise MarcliError(f"{path}: arr_0 is {list(self._images.shape)}, not pictures [n, side, side, 1 or 3].")
        self.image_size = width
        self.fingerprint = sha256_file(path)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "batch channels size size"]:
        """Return pictures as they are stored."""
        return torch.from_numpy(np.ascontiguousarray(self._images[np.asarray(indices)].transpose(0, 3, 1, 2)))


def in_class_order(labels: np.ndarray | None) -> bool:
    """Tell whether pictures with these labels come class by class."""
    if labels is None or labels.ndim != 1 or len(np.unique(labels)) < 2:
        return False
    return np.array_equal(labels, np.sort(labels))


def read_pictures(path: Path) -> UInt8[np.ndarray, "images height width channels"]:
    """Return `arr_0` of an npz; raises MarcliError unless it holds 8-bit pictures."""
    mapped = map_stored_array(path, "arr_0")
    images = read_arrays(path, ["arr_0"])["arr_0"] if mapped is None else mapped
    if images.dtype != np.uint8 or images.ndim != 4:
        raise MarcliError(
            f"{path}: arr_0 is {images.dtype} {list(images.shape)}, but pictures are uint8 [n, height, width, "
            "channels]: a score is that of the 8-bit picture."
        )
    return images


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return those arrays of an npz that it has; raises UsageError or MarcliError, and never unpickles."""
    if not path.is_file():
        raise UsageError(f"There is no file {path}.")
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in set(names).intersection(entries_of(archive)):
                read_header(archive, name)
                with archive.open(f"{name}.npy") as file:
                    arrays[name] = npy.read_array(file, allow_pickle=False)
    except BAD_ARCHIVE as error:
        if "allow_pickle" in str(error):
            raise MarcliError(f"{path} holds Python objects, which could run code: it is not read.") from None
        raise MarcliError(f"{path} is not a complete npz file ({error}).") from None
    return arrays


def entries_of(archive: zipfile.ZipFile) -> list[str]:
    """Return the names of the arrays in an open npz."""
    return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def read_header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Return shape, Fortran order, kind and length of the header; raises ValueError unless they fit the entry's length.

    Else a few wrong bytes would ask for more memory than there is.
    """
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    entry = archive.getinfo(f"{name}.npy")
    with archive.open(entry) as file:
        version = npy.read_magic(file)
        if version not in readers:
            raise ValueError(f"{name} is not a plain array")
        shape, fortran_order, dtype = readers[version](file)
        length = file.tell()
    fits = length + math.prod(shape) * dtype.itemsize == entry.file_size and min(shape, default=0) >= 0
    if not (fits or dtype.hasobject):
        raise ValueError(f"{name} says it is {list(shape)}, but is not so long")
    return shape, fortran_order, dtype, length


def archive_names(path: Path) -> list[str]:
    """Return the names of the arrays in an npz; raises UsageError or MarcliError."""
    if not path.is_file():
        raise UsageError(f"There is no file {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            return entries_of(archive)
    except zipfile.BadZipFile:
        raise MarcliError(f"{path} is not a complete npz file.") from None


def map_stored_array(path: Path, name: str) -> np.ndarray | None:
    """Return an uncompressed array of an npz as a memory map, or None where it must be read otherwise."""
    if name not in archive_names(path):
        raise MarcliError(f"{path} has no array {name!r}; it has {', '.join(archive_names(path)) or 'none'}.")
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo(f"{name}.npy")
            shape, fortran_order, dtype, length = read_header(archive, name)
    except BAD_ARCHIVE:
        return None  # reading it says what is wrong
    if entry.compress_type != zipfile.ZIP_STORED or dtype.hasobject or fortran_order:
        return None
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)  # the lengths of name and extra field end the 30-byte local header
        lengths = file.read(4)
    start = entry.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
    if start + entry.file_size > path.stat().st_size:
        return None
    return np.memmap(path, dtype=dtype, mode="r", offset=start + length, shape=shape)
