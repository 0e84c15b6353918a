"""Pictures in parquet files, alone and beside others."""

import errno
import shutil

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from marcli.data.images import open_images
from marcli.errors import MarcliError, UsageError
from tests.data.pictures import data, greys, save, write_parquet


def test_parquet_is_read_with_its_class_names(tmp_path) -> None:
    images = open_images(data(write_parquet(tmp_path / "t.parquet", rows=7)))
    assert images.class_names == ["a", "b", "c"]
    assert images.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert greys(images) == list(range(7))


def test_a_folder_of_parquet_files_is_one_set_in_sorted_order_by_split(tmp_path) -> None:
    for name, rows in (("train-00001", 2), ("train-00000", 3), ("test-00000", 4)):
        write_parquet(tmp_path / "data" / f"{name}.parquet", rows=rows)
    assert greys(open_images(data(tmp_path))) == [0, 1, 2, 0, 1]
    assert len(open_images(data(tmp_path, split="test"))) == 4
    with pytest.raises(UsageError, match="none of split 'val'"):
        open_images(data(tmp_path, split="val"))


def test_parquet_rows_that_are_broken_are_named_by_row(tmp_path) -> None:
    cells = [{"bytes": b"bad", "path": None}, {"bytes": None, "path": None}, None]
    table = datasets.Dataset.from_dict({"image": cells, "label": [0, 1, 2]})
    table.to_parquet(tmp_path / "t.parquet")
    images = open_images(data(tmp_path / "t.parquet"))
    with pytest.raises(MarcliError, match="none of the 3"):
        images.read([0])
    assert images.skipped == [
        (f"row {row} of {tmp_path / 't.parquet'}", reason)
        for row, reason in enumerate(["not an image file that Pillow knows", "the cell is empty", "the cell is empty"])
    ]


def test_parquet_with_nothing_but_paths_is_read(tmp_path) -> None:
    save(tmp_path / "a.png", 7)
    cells = pa.array([{"bytes": None, "path": str(tmp_path / "a.png")}])  # so the bytes have no type
    pq.write_table(pa.table({"image": cells, "label": [0]}), tmp_path / "t.parquet")
    assert greys(open_images(data(tmp_path / "t.parquet"))) == [7]


def test_a_cache_that_cannot_be_written_is_named_with_what_to_set(tmp_path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "/home/me/.cache")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(MarcliError, match=r"t.parquet is read through a copy in .*Read-only.*: set HF_HOME to a"):
        open_images(data(write_parquet(tmp_path / "t.parquet", rows=2)))


def test_text_labels_are_numbered_by_sorted_name(tmp_path) -> None:
    path = write_parquet(tmp_path / "t.parquet", rows=3, label=["owl", "ant", "owl"])
    images = open_images(data(path))
    assert (images.class_names, images.labels.tolist()) == (["ant", "owl"], [1, 0, 1])


@pytest.mark.parametrize(
    ("changes", "columns", "named"),
    [
        ({"image_column": "photo"}, {}, r"data.image_column 'photo' is not in .*img, label"),
        ({"image_column": "label"}, {}, r"data.image_column 'label' of .* has type int64: images are encoded files"),
        ({"label_column": "kind"}, {}, r"data.label_column 'kind' is not in"),
        ({}, {"labels": [0, 0]}, None),  # the typed column wins over a name
        ({"num_classes": 1}, {}, r"1 of 2 images .* label 1 \('b'\): set data.num_classes=2"),
        ({"label_column": "score"}, {"score": [0.5, 0.1]}, r"has type double: labels are integers or text"),
        ({"label_column": "k"}, {"k": [0, None]}, r"1 rows of .* have no label in column 'k'"),
        ({"label_column": "k"}, {"k": [0, -1]}, r"label -1: this split seems to have no labels"),
    ],
)
def test_columns_that_are_wrong_are_named(tmp_path, changes, columns, named) -> None:
    path = write_parquet(tmp_path / "t.parquet", rows=2, **columns)
    if named is None:
        open_images(data(path, **changes))
        return
    with pytest.raises(UsageError, match=named):
        open_images(data(path, **changes))


def test_a_parquet_without_images_or_labels_lists_its_columns(tmp_path) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(
        UsageError, match=r"no column with images among text: name the right one with data.image_column"
    ):
        open_images(data(tmp_path / "t.parquet"))
    cells = {"bytes": b"", "path": None}
    datasets.Dataset.from_dict({"image": [cells]}).to_parquet(tmp_path / "u.parquet")
    with pytest.raises(UsageError, match=r"no column with labels among image"):
        open_images(data(tmp_path / "u.parquet"))


@pytest.mark.parametrize("keep", [0, 200])
def test_a_damaged_parquet_file_is_named(tmp_path, keep) -> None:
    path = write_parquet(tmp_path / "t.parquet", rows=3)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(MarcliError, match=r"t.parquet (cannot be read as parquet|is no parquet file)"):
        open_images(data(path))


def test_parquet_files_without_rows_are_left_out(tmp_path) -> None:
    whole = open_images(data(write_parquet(tmp_path / "b [2024]" / "b.parquet", rows=3)))  # no pattern for `datasets`
    empty = tmp_path / "b [2024]" / "a.parquet"
    pq.write_table(pq.read_table(tmp_path / "b [2024]" / "b.parquet").slice(0, 0), empty)
    images = open_images(data(tmp_path / "b [2024]"))
    assert (images.labels.tolist(), images.fingerprint) == ([0, 1, 2], whole.fingerprint)
    with pytest.raises(UsageError, match=r"a.parquet holds no images, for it has no rows"):
        open_images(data(empty))


def test_of_several_parquet_files_the_one_that_does_not_fit_is_named(tmp_path) -> None:
    write_parquet(tmp_path / "a.parquet", rows=2)
    other = write_parquet(tmp_path / "b.parquet", rows=2, kind=[0, 1])
    with pytest.raises(UsageError, match=r"b.parquet has the columns img, label, kind, but .*a.parquet has img, label"):
        open_images(data(tmp_path))
    other.write_bytes(other.read_bytes()[:200])
    with pytest.raises(MarcliError, match=r"b.parquet cannot be read as parquet"):
        open_images(data(tmp_path))


def test_a_parquet_file_without_images_beside_pictures_is_left_aside(folder, caplog) -> None:
    """`datasets` calls such a folder an image folder, and the file its metadata."""
    expected = open_images(data(folder))
    rows = datasets.Dataset.from_dict({"file_name": ["cat/0.png", "dog/1.PNG"], "text": ["a cat", "a dog"]})
    rows.to_parquet(folder / "metadata.parquet")
    assert greys(open_images(data(folder))) == greys(open_images(data(folder))) == greys(expected)
    assert [record.getMessage() for record in caplog.records] == [
        f"left aside {folder / 'metadata.parquet'}, without images: the pictures beside it are the data set"
    ]
    with pytest.raises(UsageError, match=r"data.image_column 'nothing' is not in"):
        open_images(data(folder, image_column="nothing"))
    write_parquet(folder / "rows.parquet", rows=3)
    (folder / "metadata.parquet").unlink()
    assert greys(open_images(data(folder))) == [0, 1, 2]


def test_a_damaged_footer_of_a_parquet_file_is_named(folder) -> None:
    file = write_parquet(folder / "rows.parquet", rows=3)
    whole = file.read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little")
    file.write_bytes(whole[: -8 - footer] + bytes(footer) + whole[-8:])
    with pytest.raises(MarcliError, match=r"rows.parquet cannot be read as parquet"):
        open_images(data(folder))


def test_a_split_of_pictures_is_found_beside_their_metadata(folder, tmp_path, caplog) -> None:
    for split in ("train", "test"):
        shutil.copytree(folder / "cat", tmp_path / "set" / split / "cat")
        datasets.Dataset.from_dict({"file_name": ["cat/0.png"]}).to_parquet(tmp_path / "set" / split / "x.parquet")
    save(tmp_path / "set" / "test" / "cat" / "9.png", 200)
    assert greys(open_images(data(tmp_path / "set", split="test"))) == [0, 1, 2, 200]
    assert f"left aside {tmp_path / 'set' / 'test' / 'x.parquet'} and 1 more like it, without images" in caplog.text


def test_a_file_that_is_no_parquet_is_said_in_a_sentence(tmp_path, capfd, caplog) -> None:
    save(tmp_path / "cat.jpg", 1)
    with pytest.raises(UsageError, match=r"cat.jpg' is one picture: give the folder it lies in"):
        open_images(data(tmp_path / "cat.jpg"))
    (tmp_path / "notes.txt").write_text("no columns here")
    with pytest.raises(UsageError, match=r"notes.txt is no parquet file: give one, a folder of pictures"):
        open_images(data(tmp_path / "notes.txt"))
    assert capfd.readouterr() == ("", "") and not caplog.records
