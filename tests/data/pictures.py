"""Small pictures in folders and parquet files."""

from pathlib import Path

import datasets
from PIL import Image

from marcli.recipe.data import Data


def data(path: object, **changes) -> Data:
    return Data(**{"path": str(path), "image_size": 8, "num_classes": 3} | changes)


def save(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (grey,) * 3).save(path, "PNG")


def write_parquet(path: Path, *, rows: int, **columns) -> Path:
    values = {"label": [i % 3 for i in range(rows)]} | columns
    table = datasets.Dataset.from_dict(
        {"img": [Image.new("RGB", (8, 8), (i, i, i)) for i in range(rows)], **values},
    ).cast_column("img", datasets.Image())
    if "label" in values and isinstance(values["label"][0], int):
        table = table.cast_column("label", datasets.ClassLabel(names=["a", "b", "c"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path)
    return path


def greys(images) -> list[int]:
    return images.read(range(len(images)))[:, 0, 0, 0].tolist()
