"""Files and folders appear completely or not at all."""

import hashlib
import os
from pathlib import Path

import pytest

from marcli.runtime import atomic
from marcli.runtime.atomic import atomic_file, atomic_folder, remove_partials, sha256_file


def test_file_is_replaced_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "weights.safetensors"
    with atomic_file(target) as partial:
        assert partial.suffix == ".safetensors" and partial.parent == target.parent
        partial.write_text("old")
        assert not target.exists()
    with pytest.raises(OSError), atomic_file(target) as partial:
        partial.write_text("half")
        raise OSError(28, "No space left on device")
    assert target.read_text() == "old"
    assert os.listdir(target.parent) == [target.name]


def test_contents_are_on_the_disk_before_their_name_and_the_name_before_anything_else(tmp_path, monkeypatch) -> None:
    target, flushed = tmp_path / "target", []
    monkeypatch.setattr(atomic, "_flush", lambda path: flushed.append((path, target.exists())))
    with atomic_file(target) as file:
        file.write_text("whole")
    assert flushed == [(file, False), (tmp_path, True)]
    target.unlink()
    flushed.clear()
    with atomic_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "model").write_text("whole")
    inside = [folder / "sub", folder / "sub" / "model", folder]
    assert flushed == [*((path, False) for path in inside), (tmp_path, True)]


def test_folder_is_replaced_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "step-0001"
    for text in ("first", "second"):
        with atomic_folder(target) as partial:
            (partial / "sub").mkdir()
            (partial / "sub" / "model").write_text(text)
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as partial:
        (partial / "model").write_text("half")
        raise KeyboardInterrupt
    assert (target / "sub" / "model").read_text() == "second"
    assert os.listdir(tmp_path) == [target.name]


def test_equal_process_ids_in_two_containers_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 7)
    target = tmp_path / "grid.png"
    with atomic_file(target) as first, atomic_file(target) as second:
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first"
    with atomic_folder(tmp_path / "step") as first, atomic_folder(tmp_path / "step") as second:
        assert first != second


def test_rights_are_those_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "weights") as partial:
            partial.touch()
            partial.chmod(0o600)
        with atomic_folder(tmp_path / "step") as folder:
            (folder / "model").touch(mode=0o600)
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("weights", "step/model")] == [0o640, 0o640]


def test_leftovers_of_a_killed_writer(tmp_path: Path) -> None:
    (tmp_path / ".lost.partial-old-7").mkdir()
    (tmp_path / ".lost.partial-old-7" / "all").write_text("the only copy")
    (tmp_path / ".kept.partial-old-7").mkdir()
    (tmp_path / "kept").mkdir()
    (tmp_path / ".half.partial-7.json").write_text("{")
    remove_partials(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["kept", "lost"]
    assert (tmp_path / "lost" / "all").read_text() == "the only copy"


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(b"abc" * 1_000_000)
    assert sha256_file(path) == hashlib.sha256(b"abc" * 1_000_000).hexdigest()
