"""A folder of images: one sub-folder per class, classes numbered by sorted name."""

import hashlib
import logging
import os
from functools import cache
from pathlib import Path

import numpy as np

from marcli.data.columns import ColumnPictures, may_hold_images
from marcli.data.listing import EXTENSIONS, RESULTS, check_no_split, files_under, folders_above, has_extension
from marcli.errors import UsageError

logger = logging.getLogger("marcli.data")

SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


def find_parquet(folder: Path, *, split: str, image_column: str | None) -> list[Path]:
    """Return the parquet files under `folder`, sorted; only those named after `split` where any is.

    Files without images (Hugging Face's metadata.parquet is one) beside pictures are left aside, unless `image_column`
    says where they hold paths.
    """
    files = [Path(file) for file in files_under(folder, {".parquet"})]
    if files and image_column is None and not any(map(may_hold_images, files)) and files_under(folder, EXTENSIONS):
        say_left_aside(files[0], len(files) - 1)
        return []
    of_split = [file for file in files if file.stem.split("-")[0] == split or split in file.relative_to(folder).parts]
    others = [file for file in files if file.stem.split("-")[0] in SPLIT_NAMES]
    if files and not of_split and others == files:
        raise UsageError(f"{folder} has parquet files, but none of split {split!r}: set data.split")
    if files and not of_split:
        check_no_split(folder, split)
    return of_split or files


@cache
def say_left_aside(file: Path, num_others: int) -> None:
    """Say it once, however often and in however many processes the folder is opened."""
    others = f" and {num_others:,} more like it" if num_others else ""
    if os.environ.get("RANK", "0") == "0":
        logger.warning("left aside %s%s, without images: the pictures beside it are the data set", file, others)


def open_folder(folder: Path, *, split: str) -> ColumnPictures:
    """List the images under `folder` (extensions in any case, nested as deep as they are) without opening one.

    Sub-folders are the classes; without sub-folders every image has class 0. Where all sub-folders have names of
    splits, the one called `split` is used. Hidden files and folders are ignored; other files and results of `eval-fid`
    too, for these lie beside the class or split that was measured.

    Raises:
        UsageError: no images, images beside class folders, or a missing split
    """
    root = _split_folder(folder, split)
    classes = _subfolders(root)
    if not classes:
        names, files, sizes = None, *_images(root)
        labels = [0] * len(files)
    else:
        beside = (entry.name for entry in os.scandir(root) if entry.is_file() and not entry.name.startswith("."))
        loose = [name for name in beside if has_extension(name, EXTENSIONS)]
        if loose:
            raise UsageError(
                f"{root} holds images beside its class folders ({min(loose)!r} is one): move them into a class folder"
            )
        names, files, sizes, labels = classes, [], [], []
        for label, name in enumerate(classes):
            found, lengths = _images(os.path.join(root, name))
            files += found
            sizes += lengths
            labels += [label] * len(found)
    if not files:
        raise UsageError(f"{root} holds no images ({', '.join(sorted(EXTENSIONS))} in any case): check data.path")
    digest, start = hashlib.sha256(), len(os.path.join(root, ""))
    try:
        for file, size, label in zip(files, sizes, labels, strict=True):
            digest.update(f"{file[start:]}\0{size}\0{label}\n".encode())
    except UnicodeEncodeError:
        raise UsageError(f"the name {file[start:]!a} under {root} is not UTF-8: rename that file") from None
    return ColumnPictures.of_files(
        files, np.array(labels, dtype=np.int64), class_names=names, fingerprint=digest.hexdigest()
    )


def _split_folder(folder: Path, split: str) -> Path:
    subfolders = _subfolders(folder)
    splits = [name for name in subfolders if name.lower() in SPLIT_NAMES]
    if len(splits) < len(subfolders) and len(splits) > 1:  # one may be a class, such as CIFAR-100's train
        others = ", ".join(sorted(set(subfolders) - set(splits))[:3])
        raise UsageError(
            f"{folder} has the splits {', '.join(splits)} beside other folders ({others}), which would be classes: "
            "give the folder of one split as data.path"
        )
    if len(splits) < len(subfolders) or not splits:
        check_no_split(folder, split)
        return folder
    if split not in subfolders:
        raise UsageError(f"{folder} has the splits {', '.join(subfolders)}, but not {split!r}: set data.split")
    return folder / split


def _subfolders(folder: Path) -> list[str]:
    circle = folders_above(folder / "a class")
    folders = (entry for entry in os.scandir(folder) if entry.is_dir())
    names = (each.name for each in folders if not (each.is_symlink() and os.path.realpath(each.path) in circle))
    return sorted(name for name in names if not (name.startswith(".") or name.endswith(RESULTS)))


def _images(folder: Path | str) -> tuple[list[str], list[int]]:
    """Return the image files under `folder`, sorted, and their sizes in bytes."""
    files = files_under(folder, EXTENSIONS)
    return files, [_size(file) for file in files]


def _size(file: str) -> int:
    """Return a file's bytes; -1 for a link to nothing, which is a broken picture when it is read."""
    try:
        return os.stat(file).st_size
    except FileNotFoundError:
        return -1
