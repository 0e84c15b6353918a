"""The files under a folder; imports nothing heavy, since `sample` lists pictures too and should start quickly."""

import os
from collections.abc import Container, Iterator
from pathlib import Path

from marcli.errors import UsageError
from marcli.recipe.data import Data
from marcli.runtime.home import at_home

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif"}
)
PARQUET = b"PAR1"  # begins every such file
DEFAULT_SPLIT = Data.model_fields["split"].default
RESULTS = ".eval"  # ends the folder that `eval-fid` makes beside the pictures it measures


def files_under(folder: Path | str, extensions: Container[str] | None = None) -> list[str]:
    """Return the files under `folder` with one of these extensions, sorted folder by folder; None takes all files.

    Links are followed, except to a folder that they lie in. Hidden entries are left out, and so are pipes and sockets,
    which would be waited on for ever. Text and not Path, which for the million files of ImageNet is several times
    slower.
    """
    files = _walk(str(folder), folders_above(folder))
    if extensions is not None:
        files = (file for file in files if has_extension(file, extensions))
    return sorted(files, key=lambda file: file.split(os.sep))


def folders_above(folder: Path | str) -> frozenset[str]:
    """Return the folders that `folder`, as it is named, lies in, as real paths: a link to one leads in a circle."""
    return frozenset(os.path.realpath(above) for above in Path(os.path.abspath(folder)).parents)


def check_outside(data_path: str, place: Path, *, option: str) -> None:
    """Raise UsageError where the folder `place`, given as `option`, would be a class of the images at `data_path`."""
    images, inside = at_home(data_path).resolve(), place.resolve()
    if data_path == "digits" or not (images.is_dir() and inside.is_relative_to(images)):
        return
    is_hidden = any(part.startswith(".") for part in inside.relative_to(images).parts)
    if not is_hidden and not _holds_parquet_images(images):
        raise UsageError(
            f"{place} lies among the images of data.path {data_path!r}, where it would become a class: choose a folder "
            f"elsewhere with {option}"
        )


def _holds_parquet_images(folder: Path) -> bool:
    from marcli.data.columns import may_hold_images

    return any(may_hold_images(Path(file)) for file in files_under(folder, {".parquet"}))


def has_extension(file: str, extensions: Container[str]) -> bool:
    """Whether a name ends in one of `extensions`, which are in small letters and begin with a dot, in any case."""
    return os.path.splitext(file)[1].lower() in extensions


def is_parquet(file: Path) -> bool:
    """Whether a file is one of parquet, whatever its name."""
    with file.open("rb") as opened:
        return opened.read(len(PARQUET)) == PARQUET


def check_no_split(place: Path | str, split: str) -> None:
    """Raise UsageError where a split is asked for and `place` has none: another one would be taken in silence."""
    if split != DEFAULT_SPLIT:
        raise UsageError(f"{place} has no splits, and data.split is {split!r}: leave it out, or give another data.path")


def _walk(folder: str, above: frozenset[str]) -> Iterator[str]:
    """Yield files; a link to a folder `above` ends there."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, above | {real})
            elif entry.is_file() or entry.is_symlink():  # a link to nothing is a broken picture
                yield entry.path
