"""Pictures to be measured: what is read as it is, and what is refused by name."""

import json
import os
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from numpy.lib import format as npy
from PIL import Image

from marcli.errors import MarcliError, UsageError
from marcli.metrics.pictures import chosen_indices, list_images, open_pictures, training_pictures
from marcli.recipe.data import Data


def noise(count: int, size: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def write_folder(folder: Path, images: np.ndarray, names: list[str]) -> Path:
    for name, image in zip(names, images, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(folder / name)
    return folder


def test_a_folder_and_both_kinds_of_npz_give_the_same_pictures(tmp_path):
    images = noise(5, 16)
    np.savez(tmp_path / "stored.npz", arr_0=images, arr_1=np.arange(5))
    np.savez_compressed(tmp_path / "packed.npz", arr_0=images)
    np.savez(tmp_path / "columns.npz", arr_0=np.asfortranarray(images))
    folder = write_folder(tmp_path / "png", images, [f"{i:06d}.png" for i in range(5)])
    for place in (*tmp_path.glob("*.npz"), folder):
        source = open_pictures(str(place), image_size=None)
        assert (len(source), source.image_size) == (5, 16)
        np.testing.assert_array_equal(source.read([3, 1]).permute(0, 2, 3, 1).numpy(), images[[3, 1]])


def test_the_grid_beside_samples_is_not_a_sample(tmp_path):
    folder = write_folder(tmp_path, noise(2, 8), ["000000.png", "000001.png"])
    Image.new("RGB", (40, 20)).save(folder / "grid.png")
    (folder / "samples.json").write_text(json.dumps({}))
    assert len(open_pictures(str(folder), image_size=None)) == 2


def test_a_few_of_a_set_in_class_order_are_spread_evenly(tmp_path):
    by_class = write_folder(tmp_path / "a", noise(6, 8), [f"{c}/{i}.png" for c in "abc" for i in range(2)])
    assert chosen_indices(open_pictures(str(by_class), image_size=None), 3).tolist() == [0, 2, 4]
    samples = write_folder(tmp_path / "b", noise(6, 8), [f"{i:06d}.png" for i in range(6)])
    assert chosen_indices(open_pictures(str(samples), image_size=None), 3).tolist() == [0, 1, 2]
    with pytest.raises(UsageError, match=r"asks for 7 pictures, but .* holds 6"):
        chosen_indices(open_pictures(str(samples), image_size=None), 7)


def test_numbered_files_in_class_folders_are_in_class_order(tmp_path):
    folder = write_folder(tmp_path, noise(6, 8), [f"{c}/{i:06d}.png" for c in "ab" for i in range(3)])
    assert chosen_indices(open_pictures(str(folder), image_size=None), 2).tolist() == [0, 3]


@pytest.mark.parametrize(
    ("labels", "chosen"),
    [([0, 0, 1, 1], [0, 2]), ([1, 0, 1, 0], [0, 1]), ([5, 5, 5, 5], [0, 1]), ([[0], [1]], [0, 1]), ([], [0, 1])],
)
def test_an_archive_with_sorted_labels_is_in_class_order(tmp_path, labels, chosen):
    np.savez(tmp_path / "x.npz", arr_0=noise(4, 8), arr_1=np.array(labels))
    assert chosen_indices(open_pictures(str(tmp_path / "x.npz"), image_size=None), 2).tolist() == chosen


@pytest.mark.parametrize("shape", [(-2, 8, 8, 3), (-1, -1, 8, 3), (2**40, 8, 8, 3), (2**62, 8, 8, 3), (3, 8, 8, 3)])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_that_claims_more_than_it_holds(tmp_path, shape, method):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", method) as archive, archive.open("arr_0.npy", "w") as file:
        npy.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": "|u1"})
        file.write(bytes(2 * 8 * 8 * 3))
    with pytest.raises(MarcliError, match="is not a complete npz file"):
        open_pictures(str(tmp_path / "x.npz"), image_size=None)


def test_entries_that_are_no_arrays(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("arr_0", b"pictures")
    with pytest.raises(MarcliError, match="has no array 'arr_0'; it has none"):
        open_pictures(str(tmp_path / "x.npz"), image_size=None)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("arr_0.npy", b"pictures")
    with pytest.raises(MarcliError, match="is not a complete npz file"):
        open_pictures(str(tmp_path / "x.npz"), image_size=None)


def test_links_to_folders_are_followed_as_in_training_but_not_in_circles(tmp_path):
    write_folder(tmp_path / "elsewhere", noise(3, 8), ["0.png", "1.PNG", ".hidden.png"])
    folder = write_folder(tmp_path / "set", noise(2, 8), ["a/0.png", ".b/0.png"])
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    names = [str(path.relative_to(folder)) for path in list_images(folder)]
    assert names == ["a/0.png", "linked/0.png", "linked/1.PNG"]


def rewrite(path: Path) -> None:
    """Change a file and keep its length."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000))


@pytest.mark.parametrize("crop", [None, 8])
def test_a_rewritten_file_of_equal_length_makes_another_set(tmp_path, crop):
    folder = write_folder(tmp_path, noise(4, 16), [f"{c}/{i}.png" for c in "ab" for i in range(2)])

    def fingerprints() -> list[str]:
        data = Data(path=str(folder), image_size=16, num_classes=2)
        return [open_pictures(str(folder), image_size=crop).fingerprint, training_pictures(data).fingerprint]

    before = fingerprints()
    assert fingerprints() == before
    rewrite(folder / "a" / "1.png")
    assert all(now != then for now, then in zip(fingerprints(), before, strict=True))


@pytest.mark.parametrize("labels", [{}, {"label": [-1, -1]}])
def test_a_data_set_is_measured_without_labels(tmp_path, monkeypatch, labels):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    table = datasets.Dataset.from_dict({"image": [Image.new("RGB", (8, 8), (i, i, i)) for i in range(2)], **labels})
    table.to_parquet(tmp_path / "t.parquet")
    source = open_pictures(str(tmp_path / "t.parquet"), image_size=8)
    assert source.read([0, 1])[:, 0, 0, 0].tolist() == [0, 1]


def test_sizes(tmp_path):
    folder = write_folder(tmp_path / "mixed", noise(2, 16), ["a.png", "b.png"])
    Image.new("RGB", (16, 12)).save(folder / "c.png")
    source = open_pictures(str(folder), image_size=None)
    with pytest.raises(MarcliError, match=r"c\.png is 16x12 pixels, but a\.png is 16 wide.*--image-size"):
        source.read([0, 1, 2])
    assert open_pictures(str(folder), image_size=8).read([2]).shape == (1, 3, 8, 8)
    Image.new("RGB", (16, 12)).save(folder / "0.png")
    with pytest.raises(MarcliError, match=r"0\.png is 16x12 pixels, and pictures must be square: --image-size crops"):
        open_pictures(str(folder), image_size=None)
    with pytest.raises(UsageError, match="at most 16 pixels wide, but 32 are needed"):
        open_pictures(str(folder), image_size=32)


def test_a_link_to_nothing_among_the_training_pictures_is_named(tmp_path):
    folder = write_folder(tmp_path / "some", noise(2, 8), ["a.png", "b.png"])
    (folder / "c.png").symlink_to("nowhere.png")
    pictures = training_pictures(Data(path=str(folder), image_size=8, num_classes=1))
    assert len(pictures.read([0, 1])) == 2
    with pytest.raises(MarcliError, match=r"c\.png cannot be read \(the file does not exist\): .* a score never does"):
        pictures.read([2])


def test_broken_and_missing_pictures_are_named(tmp_path):
    folder = write_folder(tmp_path / "some", noise(2, 64), ["a.png", "b.png"])
    whole = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MarcliError, match=r"b\.png cannot be read .*no score leaves a picture out"):
        open_pictures(str(folder), image_size=None).read([0, 1])
    (folder / "b.png").unlink()
    (folder / "b.png").symlink_to("nowhere.png")
    for size in (None, 8):
        with pytest.raises(MarcliError, match=r"b\.png cannot be read \(the file does not exist\)"):
            open_pictures(str(folder), image_size=size).read([0, 1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty holds no images"):
        open_pictures(str(tmp_path / "empty"), image_size=None)
    with pytest.raises(UsageError, match=r"There is no .*/none: give a folder"):
        open_pictures(str(tmp_path / "none"), image_size=None)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 8, 8, 3), dtype=np.float32), r"arr_0 is float32 \[2, 8, 8, 3\], but pictures are uint8"),
        (np.full((2, 8, 8, 3), np.nan), "arr_0 is float64"),
        (np.zeros((2, 8, 8), dtype=np.uint8), r"arr_0 is uint8 \[2, 8, 8\]"),
        (np.zeros((2, 8, 6, 3), dtype=np.uint8), "not pictures"),
        (np.zeros((0, 8, 8, 3), dtype=np.uint8), "not pictures"),
        (np.array([{"a": 1}, None], dtype=object), "holds Python objects"),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_that_are_no_pictures(tmp_path, array, words, save):
    save(tmp_path / "x.npz", arr_0=array)
    with pytest.raises(MarcliError, match=words):
        open_pictures(str(tmp_path / "x.npz"), image_size=None)


def test_files_that_are_no_archives(tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=noise(20, 16))
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(whole[:9000])
    with pytest.raises(MarcliError, match="not a complete npz"):
        open_pictures(str(tmp_path / "x.npz"), image_size=None)
    np.savez(tmp_path / "y.npz", images=noise(2, 8))
    with pytest.raises(MarcliError, match="no array 'arr_0'; it has images"):
        open_pictures(str(tmp_path / "y.npz"), image_size=None)
    with pytest.raises(UsageError, match="There is no file"):
        open_pictures(str(tmp_path / "z.npz"), image_size=None)


@pytest.mark.parametrize("image_size", [None, 8])
def test_other_files_are_not_taken_for_data_sets(tmp_path, image_size):
    np.save(tmp_path / "plain.npy", noise(2, 8))
    with pytest.raises(UsageError, match=r"plain\.npy is no folder, npz or parquet file of pictures: give one"):
        open_pictures(str(tmp_path / "plain.npy"), image_size=image_size)
