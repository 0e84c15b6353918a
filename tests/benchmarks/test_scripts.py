"""Benchmarks run, and start from a checkout without installation, as their docstrings say."""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = [
    path
    for path in sorted(Path(__file__).parent.glob("*.py"))
    if not path.name.startswith("test_") and "import argparse" in path.read_text() and "from tests" in path.read_text()
]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_that_shares_code_with_others_starts(script):
    command = [sys.executable, str(script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr


SMALL = {
    "cache_read": "--images 300 --npz-images 64 --batch-size 32 --batches 8 --repeats 1",
    "digits_score": "samples.npz",
    "features": "--num 4 --size 32 --rounds 1",
    "frechet": "--dim 16 --few 5 --repeat 1",
    "kv_cache": "--depth 1 --width 24 --batch-size 1 --every 128 --repeats 1",
}


@pytest.mark.parametrize(("script", "arguments"), SMALL.items())
def test_a_small_run_comes_to_its_end(script, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("samples.npz", arr_0=np.zeros((20, 8, 8, 3), dtype=np.uint8), arr_1=np.arange(20) % 10)
    monkeypatch.setattr(sys, "argv", [script, *arguments.split()])
    runpy.run_path(str(Path(__file__).with_name(f"{script}.py")), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) > 1
