"""`marcli train`: what is refused before anything starts."""

import subprocess
import sys
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


NOT_NEEDED = ["datasets", "pandas", "diffusers", "timm", "sklearn", "scipy", "sympy", "cleanfid", "torch._dynamo"]


def test_training_on_digits_starts_quickly(tmp_path: Path) -> None:
    """It imports no package that others need; PyTorch's compiler alone would take as long as PyTorch."""
    code = (
        "import sys; from marcli.cli.app import run; code = run(sys.argv[2:]);"
        "print([name for name in sys.argv[1].split() if name in sys.modules], code)"
    )
    arguments = [
        "train",
        "recipes/debug/head_diffusion.yaml",
        "train.steps=1",
        "--out",
        str(tmp_path / "run"),
        "--gpus",
        "0",
    ]
    command = [sys.executable, "-c", code, " ".join(NOT_NEEDED), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"
