"""Places that cannot be written are named with the reason, before any work."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from marcli.errors import UsageError
from marcli.runtime.writable import check_place


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (os.ST_RDONLY, "x cannot be written to: the file system is read-only; choose another --out"),
        (0, "x cannot be written, for you have no permission in"),
    ],
)
def test_a_read_only_file_system_is_no_lack_of_permission(
    flags: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *given: False)
    monkeypatch.setattr(os, "statvfs", lambda place: SimpleNamespace(f_flag=flags))
    with pytest.raises(UsageError, match=words):
        check_place(tmp_path / "x")


def test_a_place_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    check_place(tmp_path / "x" / "y")
    assert list(tmp_path.iterdir()) == []
