"""What commands print last, and how arguments are told apart."""

import json
from pathlib import Path

import pytest

from marcli.cli.options import split_overrides
from marcli.cli.output import print_result


def test_json_is_strict(capsys: pytest.CaptureFixture[str]) -> None:
    record = {"fid": float("nan"), "all": [1.5, (float("inf"), 2)], "deep": {"x": float("-inf")}, "out": Path("a")}
    print_result(["done"], record, as_json=True)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    last = capsys.readouterr().out.splitlines()[-1]
    read = json.loads(last, parse_constant=refuse)
    assert read == {"fid": None, "all": [1.5, [None, 2]], "deep": {"x": None}, "out": "a"}


def test_an_argument_too_long_for_a_name_is_an_override(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").touch()
    long = "data.path=" + "x" * 5000
    assert split_overrides(["a=b", long, "run"]) == (["a=b", "run"], [long])
