"""`marcli train`: what is refused before anything starts."""

from pathlib import Path

import pytest

from marcli.cli.app import run


def test_a_batch_that_cannot_be_shared_is_refused_before_processes_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("marcli.cli.launching.launch", lambda *given, **options: pytest.fail("started"))
    given = ["train", "recipes/digits.yaml", "train.batch_size=16", "--out", str(tmp_path / "run")]
    assert run([*given, "--gpus", "0", "--processes", "17"]) == 2
    assert "train.batch_size 16 cannot be shared by 17 processes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
