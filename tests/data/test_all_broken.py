"""A folder in which no picture can be read is an error, not an empty data set."""

from pathlib import Path

import pytest

from marcli.data.images import open_images
from marcli.errors import MarcliError
from marcli.recipe.data import Data


def test_every_picture_is_broken(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("no picture")
    images = open_images(Data(path=str(tmp_path), image_size=8, num_classes=2))
    with pytest.raises(MarcliError, match="none of the 2 images can be read"):
        list(images.batches(4))
    assert [reason for _, reason in images.skipped] == ["not an image file that Pillow knows"] * 2
