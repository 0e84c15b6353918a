"""Folders, parquet files and the digits as labelled squares, and everything that can be wrong with them."""

import errno
import hashlib
import logging
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits

from marcli.data.crop import BrokenImageError
from marcli.data.digits import open_digits
from marcli.data.folders import open_folder
from marcli.data.images import evenly_spread, open_images
from marcli.errors import MarcliError, UsageError
from tests.data.pictures import data, greys, save, write_parquet


@pytest.mark.parametrize(
    ("total", "num", "chosen"),
    [(0, 3, []), (2, 3, [0, 1]), (9, 1, [0]), (10, 4, [0, 3, 6, 9]), (2**25 + 2, 3, [0, 2**24, 2**25 + 1])],
)
def test_evenly_spread_numbers_are_exact(total, num, chosen) -> None:
    assert evenly_spread(total, num) == chosen


def test_a_folder_is_read_by_sorted_class_in_any_case_of_extension(folder) -> None:
    images = open_images(data(folder))
    assert images.class_names == ["cat", "dog", "eel"]
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert greys(images) == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    pixels, labels = images.fetch([4, 0])
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (2, 3, 8, 8))
    assert labels.tolist() == [1, 0]


def test_a_flat_folder_is_one_class_and_a_split_is_found(folder, tmp_path) -> None:
    flat = open_images(data(folder / "dog", num_classes=1))
    assert (len(flat), flat.class_names, set(flat.labels.tolist())) == (3, None, {0})
    for split in ("train", "val"):
        save(tmp_path / "set" / split / "cat" / "a.png", 5 if split == "val" else 6)
    assert greys(open_images(data(tmp_path / "set", split="val"))) == [5]
    with pytest.raises(UsageError, match=r"splits train, val, but not 'test'"):
        open_images(data(tmp_path / "set", split="test"))


def test_a_split_that_would_be_ignored_is_refused(folder, tmp_path) -> None:
    write_parquet(tmp_path / "parquet" / "0.parquet", rows=1)
    for place in (folder, folder / "dog", tmp_path / "parquet", "digits"):
        with pytest.raises(UsageError, match=r"has no splits, and data.split is 'val': leave it out"):
            open_images(data(place, split="val"))


def test_splits_beside_other_folders_are_no_classes(folder) -> None:
    save(folder / "train" / "a.png", 30)
    assert open_images(data(folder, num_classes=4)).class_names == ["cat", "dog", "eel", "train"]
    save(folder / "val" / "a.png", 40)
    with pytest.raises(UsageError, match=r"has the splits train, val beside other folders \(cat, dog, eel\)"):
        open_images(data(folder, num_classes=5))


def test_results_of_eval_fid_beside_a_class_or_a_split_are_no_class(folder, tmp_path) -> None:
    before = open_images(data(folder))
    (folder / "cat.eval" / "features-0").mkdir(parents=True)
    after = open_images(data(folder))
    assert (after.class_names, after.labels.tolist()) == (["cat", "dog", "eel"], before.labels.tolist())
    assert after.fingerprint == before.fingerprint
    save(tmp_path / "set" / "train" / "a" / "0.png", 1)
    (tmp_path / "set" / "train.eval").mkdir()
    assert open_images(data(tmp_path / "set")).class_names == ["a"]


def test_the_fingerprint_follows_content_and_crop_not_the_place(folder, tmp_path, monkeypatch) -> None:
    first = open_images(data(folder)).fingerprint
    folder.rename(tmp_path / "elsewhere")
    assert open_images(data(tmp_path / "elsewhere")).fingerprint == first
    assert open_images(data(tmp_path / "elsewhere", image_size=16)).fingerprint != first
    monkeypatch.chdir(tmp_path / "elsewhere")
    for same in (".", "./", "../elsewhere", f"{tmp_path}/elsewhere/"):
        images = open_images(data(same))
        assert images.fingerprint == first and Path(images.name(0)).exists()
    flat = open_images(data(tmp_path / "elsewhere" / "dog", num_classes=1)).fingerprint
    monkeypatch.chdir("dog")
    assert open_images(data(".", num_classes=1)).fingerprint == flat
    (tmp_path / "elsewhere" / "eel" / "2.JpEg").unlink()
    assert open_images(data(tmp_path / "elsewhere")).fingerprint != first


def test_a_broken_picture_is_named_once_and_no_label_moves(folder, caplog) -> None:
    (folder / "dog" / "1.PNG").write_bytes(b"broken")
    images = open_images(data(folder))
    assert images.skipped == []
    with caplog.at_level(logging.WARNING, logger="marcli.data"):
        for _ in range(2):
            pixels, labels = images.fetch([3, 4, 5])
    assert pixels[:, 0, 0, 0].tolist() == [10, 12, 12]  # the next readable one takes its place
    assert labels.tolist() == [1, 1, 1]
    assert [record.getMessage() for record in caplog.records] == [
        f"skipped {folder / 'dog' / '1.PNG'}: not an image file that Pillow knows"
    ]
    assert images.skipped == [(str(folder / "dog" / "1.PNG"), "not an image file that Pillow knows")]


def test_processes_name_a_broken_picture_once_in_all(folder, caplog) -> None:
    (folder / "dog" / "1.PNG").write_bytes(b"broken")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with caplog.at_level(logging.WARNING, logger="marcli.data"):
            for images in (open_images(data(folder)), open_images(data(folder))):  # as each process opens its own
                images.fetch([4])
                assert len(images.skipped) == 1
    finally:
        dist.destroy_process_group()
    assert len(caplog.records) == 1


def test_threads_that_meet_a_broken_picture_at_once_name_it_once(folder, caplog, monkeypatch) -> None:
    images, together = open_images(data(folder)), threading.Barrier(2)

    def broken(_):
        together.wait(10)
        raise BrokenImageError("damaged")

    monkeypatch.setattr(images, "_decode", broken)
    with caplog.at_level(logging.WARNING, logger="marcli.data"), ThreadPoolExecutor(2) as pool:
        errors = [each.exception() for each in [pool.submit(images.square, 4) for _ in range(2)]]
    assert list(map(str, errors)) == ["damaged"] * 2
    assert len(caplog.records) == 1


def test_a_link_to_nothing_is_a_broken_picture(folder, caplog) -> None:
    (folder / "cat" / "gone.png").symlink_to(folder / "nowhere.png")
    images = open_images(data(folder))
    assert len(images) == 10 and sum(len(labels) for _, labels in images.batches(2)) == 9
    assert "gone.png: the file does not exist" in caplog.text


@pytest.mark.parametrize("place", [".", "cat"])
def test_a_link_to_the_folder_it_lies_in_is_no_class_and_adds_no_pictures(folder, place) -> None:
    (folder / place / "loop").symlink_to(folder)
    images = open_images(data(folder))
    assert images.class_names == ["cat", "dog", "eel"]
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_pipe_is_no_picture(folder) -> None:
    os.mkfifo(folder / "cat" / "pipe.png")  # reading it would wait for ever
    assert open_images(data(folder)).labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_broken_picture_at_the_end_of_a_class_brings_the_label_of_its_substitute(folder) -> None:
    (folder / "dog" / "2.JpEg").write_bytes(b"broken")
    (folder / "eel" / "2.JpEg").write_bytes(b"broken")
    pixels, labels = open_images(data(folder)).fetch([5, 8])
    assert pixels[:, 0, 0, 0].tolist() == [20, 0]
    assert labels.tolist() == [2, 0]


def test_batches_leave_broken_pictures_out(folder) -> None:
    (folder / "dog" / "1.PNG").write_bytes(b"broken")
    found = list(open_images(data(folder)).batches(3))
    assert [len(pixels) for pixels, _ in found] == [3, 3, 2]
    assert torch.cat([pixels for pixels, _ in found])[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 12, 20, 21, 22]
    assert torch.cat([labels for _, labels in found]).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_a_disk_that_fails_is_not_a_broken_picture(folder, monkeypatch, error) -> None:
    """One bad moment passes; a disk that stays bad ends the work, and neither is remembered against the picture."""
    monkeypatch.setattr("marcli.data.images.SECONDS_BEFORE_A_TRY", (0.0, 0.0, 0.0))
    images, read, failures = open_images(data(folder)), Path.read_bytes, [error]

    def failing(path: Path) -> bytes:
        if failures:
            raise failures.pop()
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    assert images.fetch([4])[0][0, 0, 0, 0] == 11
    failures += [error] * 3
    with pytest.raises(MarcliError, match=r"dog/1.PNG could not be read at any of 3 tries \(.*(error|memory)\)"):
        images.fetch([4])
    assert images.fetch([4])[0][0, 0, 0, 0] == 11 and images.skipped == []


def test_a_broken_picture_can_be_fatal(folder) -> None:
    (folder / "dog" / "1.PNG").write_bytes(b"broken")
    images = open_images(data(folder, on_broken="fail"))
    images.fetch([0, 3])
    with pytest.raises(MarcliError, match=r"dog/1.PNG cannot be read .*: repair or remove it"):
        images.fetch([0, 4])


def test_when_every_picture_is_broken_that_is_said(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"")
    with pytest.raises(MarcliError, match="none of the 1 images can be read"):
        open_images(data(tmp_path)).read([0])


def test_files_are_listed_folder_by_folder_and_hashed_by_relative_name(tmp_path) -> None:
    names = ["a/1.png", "a/b/2.png", "a-b/3.png", "a/b-c/4.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save(tmp_path / name, 1)
    pictures = open_folder(tmp_path, split="train")
    listed = ["a/1.png", "a/b/2.png", "a/b-c/4.png", "a-b/3.png"]
    assert [pictures.name(i) for i in range(4)] == [str(tmp_path / name) for name in listed]
    assert pictures.labels.tolist() == [0, 0, 0, 1]
    lines = [f"{name}\0{(tmp_path / name).stat().st_size}\0{name[1] == '-':d}\n" for name in listed]
    assert pictures.fingerprint == hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep such names off their disks")
def test_a_name_that_is_not_utf8_is_said(folder) -> None:
    save(Path(os.fsdecode(os.fsencode(folder / "dog") + b"/caf\xe9.png")), 1)
    with pytest.raises(UsageError, match=r"the name 'dog/caf\\udce9.png' under .* is not UTF-8: rename that file"):
        open_images(data(folder))


@pytest.mark.parametrize("path", ["/no/such/folder", "./photos", "photos/", "photos.parquet", "a/b/c", "~nobody/x"])
def test_a_path_that_does_not_exist_is_said_at_once(path) -> None:
    with pytest.raises(UsageError, match="does not exist: give a folder, a parquet file, a hub id or 'digits'"):
        open_images(data(path))


def test_a_hub_id_without_network_is_one_sentence() -> None:
    with pytest.raises(UsageError, match=r"could not be fetched .* check the name and the network, or download it"):
        open_images(data("somebody/pictures"))


def test_an_empty_folder_and_loose_images_are_said(folder, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no images"):
        open_images(data(tmp_path / "empty"))
    save(folder / "stray.png", 1)
    with pytest.raises(UsageError, match=r"images beside its class folders \('stray.png' is one\)"):
        open_images(data(folder))


def test_more_class_folders_than_classes_are_said_before_decoding(folder) -> None:
    with pytest.raises(UsageError, match=r"3 of 9 images .* number 6 with label 2 \('eel'\): set data.num_classes=3"):
        open_images(data(folder, num_classes=2))


def test_digits_are_scikit_learns_and_come_back_exactly() -> None:
    images = open_images(data("digits", channels=1, num_classes=10))
    pixels, labels = images.fetch(range(1797))
    levels = np.rint(pixels[:, 0].numpy() * (16 / 255))
    assert np.array_equal(levels, load_digits().images)
    assert np.array_equal(labels.numpy(), load_digits().target)
    assert open_digits(image_size=16, channels=3).read([0]).shape == (1, 3, 16, 16)
