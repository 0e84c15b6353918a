"""Pictures on disk: one PNG each, a grid, and the npz that the ADM evaluation suite reads."""

import zipfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.lib import format as npy
from PIL import Image
from torch import Tensor

from marcli.data.crop import BrokenImageError, decode_square, picture_size
from marcli.errors import MarcliError, StoppedError
from marcli.runtime.atomic import atomic_file
from marcli.sampling.generate import Pictures

GRID_PICTURES = 100
WRITERS = 2
GAP_GREY = 96  # neither ink nor paper, so that a picture's edge shows whatever it holds


def picture_path(folder: Path, index: int) -> Path:
    """Where picture `index` lies."""
    return folder / f"{index:06d}.png"


class Album:
    """Context manager that writes PNGs behind the generation's back; leaving it waits for them, stopped or not."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._pool = ThreadPoolExecutor(WRITERS)
        self._pending: list[Future[None]] = []

    def __enter__(self) -> "Album":
        return self

    def add(self, pictures: Pictures) -> None:
        """Queue pictures for writing; an error of an earlier write is raised here."""
        still = [future for future in self._pending if not future.done()]
        for future in self._pending:
            if future.done():
                future.result()
        self._pending = still
        for index, image in zip(pictures.indices, pictures.images, strict=True):
            self._pending.append(self._pool.submit(write_png, image, picture_path(self.folder, index)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_wanted = error is None or isinstance(error, StoppedError)
        self._pool.shutdown(wait=True, cancel_futures=not is_wanted)
        if is_wanted:
            for future in self._pending:
                future.result()


def to_pil(image: UInt8[Tensor, "channels height width"]) -> Image.Image:
    """A grey or colour picture."""
    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def write_png(image: UInt8[Tensor, "channels height width"], path: Path) -> None:
    """Write one picture, whole or not at all."""
    with atomic_file(path) as partial:
        to_pil(image).save(partial, format="PNG")


def grid_image(images: UInt8[Tensor, "batch channels height width"], *, columns: int) -> Image.Image:
    """Pictures side by side; small ones are enlarged so that they can be looked at."""
    count, channels, height, width = images.shape
    rows, gap = -(-count // columns), 1 if height < 64 else 2
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), GAP_GREY, dtype=np.uint8)
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top, left = gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = image
    factor = max(1, min(8, 800 // canvas.shape[1]))
    canvas = canvas.repeat(factor, axis=0).repeat(factor, axis=1)
    return Image.fromarray(canvas[:, :, 0] if channels == 1 else canvas)


def write_grid(images: UInt8[Tensor, "batch channels height width"], path: Path, *, columns: int) -> None:
    """Write a grid as PNG."""
    with atomic_file(path) as partial:
        grid_image(images, columns=columns).save(partial, format="PNG")


def read_picture(path: Path) -> UInt8[np.ndarray, "side side channels"]:
    """Read back one picture; raises MarcliError when it is damaged."""
    try:
        side, _, channels = picture_size(path)
        return decode_square(path, image_size=side, channels=channels).transpose(1, 2, 0)
    except BrokenImageError as error:
        raise MarcliError(f"{path} is damaged ({error}): remove it, and the same command makes it again") from None


def read_grid_pictures(folder: Path, num: int) -> UInt8[Tensor, "batch channels height width"]:
    """The first pictures of a folder of `num`, as many as a grid shows."""
    pictures = [read_picture(picture_path(folder, index)) for index in range(min(num, GRID_PICTURES))]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def write_npz(folder: Path, labels: Sequence[int], path: Path) -> None:
    """Write `arr_0` (uint8 [n, h, w, 3], grey repeated) and `arr_1` (labels), one picture in memory at a time."""
    height, width = read_picture(picture_path(folder, 0)).shape[:2]
    with atomic_file(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            shape = (len(labels), height, width, 3)
            npy.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for index in range(len(labels)):
                picture = read_picture(picture_path(folder, index))
                member.write(np.ascontiguousarray(np.broadcast_to(picture, (height, width, 3))).tobytes())
        with archive.open("arr_1.npy", "w") as member:
            npy.write_array(member, np.asarray(labels, dtype=np.int64))
