"""Benchmarks start from a checkout without installation, as their docstrings say."""

import subprocess
import sys
from pathlib import Path

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
