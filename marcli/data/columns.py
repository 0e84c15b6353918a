"""Pictures in the columns of a `datasets` table: parquet files, hub data sets, and lists of files.

`datasets` keeps parquet and hub data as Arrow files in its own cache and maps them, so any row is one read away and
several processes share the pages.
"""

import errno
import glob
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from huggingface_hub import constants

from marcli.data.crop import BrokenImageError
from marcli.data.listing import is_parquet
from marcli.errors import MarcliError, UsageError
from marcli.recipe.data import Data

SECONDS_TO_ANSWER = 10
LABEL_NAMES = ("label", "labels", "class", "target", "fine_label", "category")


class ColumnPictures:
    """One column of encoded images and one of labels."""

    def __init__(
        self,
        table: datasets.Dataset,
        column: str,
        labels: np.ndarray,
        *,
        class_names: list[str] | None,
        fingerprint: str,
        place: Path | str | None,
    ) -> None:
        """`place` is where the table came from; None for a table of files, whose names are their paths."""
        self.labels = labels
        self.class_names = class_names
        self.fingerprint = fingerprint
        self._column = table.select_columns(column).cast_column(column, datasets.Image(decode=False))
        self._name = column
        self._place = place

    @classmethod
    def of_files(
        cls, files: Sequence[str], labels: np.ndarray, *, class_names: list[str] | None, fingerprint: str
    ) -> "ColumnPictures":
        """Pictures that stay where they are: the table holds their paths."""
        table = datasets.Dataset.from_dict({"image": files})
        return cls(table, "image", labels, class_names=class_names, fingerprint=fingerprint, place=None)

    def name(self, index: int) -> str:
        """The file's path, or the row and where the table came from."""
        cell = self._column[index][self._name]
        path = cell and cell["path"]
        if self._place is None:
            return path
        return f"row {index} of {self._place}" + (f" ({path})" if path else "")

    def encoded(self, index: int) -> bytes | Path:
        """The file's bytes, or where it lies; raises BrokenImageError for an empty cell."""
        cell = self._column[index][self._name]
        if cell is None or (cell["bytes"] is None and not cell["path"]):
            raise BrokenImageError("the cell is empty")
        return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"])


def open_parquet(files: list[Path], data: Data, *, labelled: bool) -> ColumnPictures:
    """Open parquet files as one table, in the given order; raises UsageError or MarcliError."""
    place = files[0] if len(files) == 1 else f"{files[0].parent} ({len(files)} files)"
    patterns = [glob.escape(str(file)) for file in with_rows(files)]
    if not patterns:
        raise UsageError(f"{place} holds no images, for it has no rows: check data.path and data.split")
    try:
        table = datasets.load_dataset("parquet", data_files=patterns, split="train")
    except (datasets.exceptions.DatasetGenerationError, pa.ArrowInvalid, ValueError) as error:
        cause = error.__cause__ or error
        raise MarcliError(f"{place} cannot be read as parquet: {_first_line(cause)}") from None
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES):
            raise
        raise MarcliError(
            f"{place} is read through a copy in {datasets.config.HF_DATASETS_CACHE}, which cannot be written "
            f"({error.strerror}): set HF_HOME to a folder that can"
        ) from None
    return _pictures(table, data, place=place, labelled=labelled)


def may_hold_images(file: Path) -> bool:
    """Whether a parquet file has a column of images; one that cannot be read may, and is named when it is opened."""
    try:
        features = datasets.Features.from_arrow_schema(pq.read_schema(file))
    except (OSError, ValueError):
        return True
    return any(map(_holds_images, features.values()))


def with_rows(files: list[Path]) -> list[Path]:
    """Return the parquet files that have rows; `datasets` reads no others, and its errors name no file.

    Raises UsageError for a file of another kind or with other columns than the first, MarcliError for a damaged one.
    """
    filled, columns = [], None
    for file in files:
        if not is_parquet(file):
            raise UsageError(f"{file} is no parquet file: give one, a folder of pictures, a hub id or 'digits'")
        try:
            footer = pq.read_metadata(file)
        except (OSError, pa.ArrowInvalid) as error:
            raise MarcliError(f"{file} cannot be read as parquet: {_first_line(error)}") from None
        if footer.num_rows == 0:
            continue
        names = footer.schema.to_arrow_schema().names
        columns = columns or names
        if set(names) != set(columns):
            raise UsageError(
                f"{file} has the columns {', '.join(names)}, but {filled[0]} has {', '.join(columns)}: "
                "one data set has the same in all files, so give the folder of one"
            )
        filled.append(file)
    return filled


def open_hub(data: Data, *, labelled: bool) -> ColumnPictures:
    """Open a hub data set, downloading it the first time; raises UsageError when there is none or no network."""
    if data.path.startswith((".", "/", "~")) or data.path.count("/") > 1 or data.path.endswith((".parquet", "/")):
        raise UsageError(f"{data.path!r} does not exist: give a folder, a parquet file, a hub id or 'digits'")
    try:
        with _offline_unless_reachable(data.path):
            table = datasets.load_dataset(data.path, split=data.split)
    except Exception as error:  # the hub client raises a dozen unrelated classes
        raise UsageError(
            f"{data.path!r} is no file or folder here, and could not be fetched as a hub data set of split "
            f"{data.split!r} ({_first_line(error)}): check the name and the network, or download it and give the folder"
        ) from None
    return _pictures(table, data, place=data.path, labelled=labelled)


@contextmanager
def _offline_unless_reachable(name: str) -> Iterator[None]:
    """Ask the hub for `name` once; without an answer use what is cached, where `datasets` would retry for long."""
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=SECONDS_TO_ANSWER)
    except huggingface_hub.errors.HfHubHTTPError:
        raise
    except Exception:  # the transport's own classes: no network
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _pictures(table: datasets.Dataset, data: Data, *, place: Path | str, labelled: bool) -> ColumnPictures:
    column = _image_column(table, data.image_column, place)
    labels, class_names = np.zeros(len(table), dtype=np.int64), None
    if labelled:
        labels, class_names = _labels(table, data, place)
    return ColumnPictures(
        table,
        column,
        labels,
        class_names=class_names,
        fingerprint=_fingerprint(table, column, labels),
        place=place,
    )


def _image_column(table: datasets.Dataset, wanted: str | None, place: Path | str) -> str:
    """Find the column with images by its type; raises UsageError that lists the columns."""
    if wanted is not None:
        if wanted not in table.column_names:
            raise UsageError(
                f"data.image_column {wanted!r} is not in {place}, whose columns are {', '.join(table.column_names)}"
            )
        kind = table.data.column(wanted).type
        if not (_holds_images(table.features[wanted]) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UsageError(
                f"data.image_column {wanted!r} of {place} has type {kind}: images are encoded files, or paths to them"
            )
        return wanted
    images = [name for name, feature in table.features.items() if _holds_images(feature)]
    if len(images) != 1:
        found = f"several columns with images ({', '.join(images)})" if images else "no column with images"
        raise UsageError(
            f"{place} has {found} among {', '.join(table.column_names)}: name the right one with data.image_column"
        )
    return images[0]


def _holds_images(feature: object) -> bool:
    if isinstance(feature, datasets.Image):
        return True
    if isinstance(feature, dict):
        return {"bytes", "path"} <= feature.keys()
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")


def _labels(table: datasets.Dataset, data: Data, place: Path | str) -> tuple[np.ndarray, list[str] | None]:
    """Return int64 labels and class names; names in a text column are numbered by sorted order."""
    name = data.label_column or _label_column(table, place)
    if name is None:
        if data.num_classes == 1:
            return np.zeros(len(table), dtype=np.int64), None
        raise UsageError(
            f"{place} has no column with labels among {', '.join(table.column_names)}: "
            "name it with data.label_column, or set data.num_classes=1"
        )
    if name not in table.column_names:
        raise UsageError(f"data.label_column {name!r} is not in {place}: {', '.join(table.column_names)}")
    column, feature = table.data.column(name), table.features[name]
    if column.null_count:
        raise UsageError(f"{column.null_count} rows of {place} have no label in column {name!r}: remove them")
    if pa.types.is_integer(column.type):
        names = list(feature.names) if isinstance(feature, datasets.ClassLabel) and feature.names else None
        return column.to_numpy().astype(np.int64), names
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        names, labels = np.unique(column.to_numpy(), return_inverse=True)
        return labels.astype(np.int64), [str(name) for name in names]
    raise UsageError(f"column {name!r} of {place} has type {column.type}: labels are integers or text")


def _label_column(table: datasets.Dataset, place: Path | str) -> str | None:
    classes = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    candidates = classes or [name for name in table.column_names if name.lower() in LABEL_NAMES]
    if len(candidates) > 1:
        raise UsageError(
            f"{place} has several columns with labels ({', '.join(candidates)}): choose one with data.label_column"
        )
    return candidates[0] if candidates else None


def _fingerprint(table: datasets.Dataset, column: str, labels: np.ndarray) -> str:
    """Hash the labels and the length of every encoded image: cheap, and the same wherever the files lie."""
    digest = hashlib.sha256(labels.tobytes())
    for chunk in table.data.column(column).chunks:
        field = chunk.field("bytes") if pa.types.is_struct(chunk.type) else chunk
        if pa.types.is_null(field.type):  # paths alone
            field = field.cast(pa.binary())
        lengths = pc.fill_null(pc.binary_length(field), -1)
        digest.update(lengths.to_numpy(zero_copy_only=False).astype(np.int64).tobytes())
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".:")[:200]
