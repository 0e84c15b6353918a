"""`marcli sample` starts quickly: it loads no package that only other commands need."""

import subprocess
import sys
from pathlib import Path

from tests.model import tiny
from tests.sampling.runs import write_run

ROOT = Path(__file__).parents[2]
NOT_NEEDED = ["datasets", "pandas", "diffusers", "timm", "sklearn", "scipy", "matplotlib", "cleanfid", "torch._dynamo"]


def test_nothing_heavy_beside_torch_is_imported(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tiny.recipe("masked", "random", "diffusion"))
    code = (
        "import sys; from marcli.cli.app import run; code = run(sys.argv[2:]);"
        "print([name for name in sys.argv[1].split() if name in sys.modules], code)"
    )
    arguments = ["sample", str(run), "--num", "2", "--out", str(tmp_path / "out"), "--gpus", "0"]
    command = [sys.executable, "-c", code, " ".join(NOT_NEEDED), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[] 0"
    assert (tmp_path / "out" / "grid.png").exists()
