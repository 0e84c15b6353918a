"""Code in a process of its own, without the tests' type checks, which neither compilers nor Triton can read."""

import os
import subprocess
import sys
from pathlib import Path


def run_alone(code: str, *arguments: str, **environment: str) -> list[list[str]]:
    """What the code prints, in words, line by line."""
    command, root = [sys.executable, "-c", code, *arguments], Path(__file__).parents[2]
    variables = {**os.environ, **environment}
    done = subprocess.run(command, cwd=root, env=variables, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]
