"""The command line as scripts see it: help, version, exit codes, no torch before it is needed."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from marcli import __version__
from marcli.cli.app import EXAMPLES, others_running, run

COMMANDS = ["tokenize", "cache-latents", "train", "sample", "eval-fid", "bench"]


@pytest.mark.parametrize("argv", [["--help"], ["-h"], [], *([command, "-h"] for command in COMMANDS)])
def test_help(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(argv) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in (COMMANDS if argv[:1] in ([], ["-h"], ["--help"]) else argv[:1]))
    assert f"marcli {argv[0] if len(argv) == 2 else 'train'} " in out, "an example"
    assert "," not in out or "..." not in out.replace("]...", "").replace("ARGS]...", ""), "nothing is cut off"


def test_every_example_is_of_its_command() -> None:
    for command, example in EXAMPLES.items():
        assert example.split()[:2] == ["marcli", command.__name__.replace("_", "-")]


@pytest.mark.parametrize(
    "argv",
    [["--help"], *([command, "-h"] for command in COMMANDS), ["train", "recipes/digits.yaml", "train.lrr=1"]],
)
def test_heavy_packages_are_not_imported(argv: list[str]) -> None:
    """The first help does not even read the recipes' schema; a wrong recipe is refused before torch is imported."""
    heavy = ["torch", "numpy", "datasets", "diffusers", "accelerate", *(["pydantic"] if argv == ["--help"] else [])]
    code = (
        "import sys; from marcli.cli.app import run; code = run(sys.argv[2:]);"
        "print([name for name in sys.argv[1].split() if name in sys.modules], code)"
    )
    command = [sys.executable, "-c", code, " ".join(heavy), *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"[] {2 if len(argv) > 2 else 0}"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch has another OpenMP")
@pytest.mark.parametrize(
    ("load", "others", "environment", "spins"),
    [
        (1.1, 2, {}, "1000"),
        (1.1, 2, {"OMP_WAIT_POLICY": "active"}, "30000000000"),
        (0.9, 2, {}, "300000"),
        (1.9, 1, {}, "300000"),
    ],
)
def test_threads_that_wait_leave_a_busy_machine_to_others(
    load: float, others: int, environment: dict[str, str], spins: str
) -> None:
    code = (
        f"import os; os.cpu_count = lambda: 2; os.getloadavg = lambda: ({load}, 0.0, 0.0);"
        f"from marcli.cli import app; app.others_running = lambda: {others}; app.run(['--version'])"
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    settings = inherited | environment | {"OMP_DISPLAY_ENV": "verbose"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=settings)
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="counted where it is used")
def test_programs_that_never_wait_are_counted() -> None:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        end = time.monotonic() + 60
        while others_running() < 3 and time.monotonic() < end:
            time.sleep(0.01)
        assert others_running() >= 3
    finally:
        for program in busy:
            program.kill()
            program.wait()


def test_bars_of_datasets_are_for_a_terminal(tmp_path: Path) -> None:
    pictures = []
    for level in range(3):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (level,) * 3).save(buffer, format="PNG")
        pictures.append(buffer.getvalue())
    pq.write_table(pa.table({"image": pictures}), tmp_path / "x.parquet")
    command = [sys.executable, "-m", "marcli", "tokenize", tmp_path / "x.parquet", "--tokenizer", "pixels", "--dry-run"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "home")}
    environment.pop("HF_DATASETS_DISABLE_PROGRESS_BARS", None)
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    assert run(["--version"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"marcli {__version__}, torch {torch.__version__}, device ")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?: see marcli -h"),
        (["train"], "Missing argument 'RECIPE': see marcli train -h"),
        (["train", "recipes/digits.yaml", "--lr", "1"], "No such option: --lr"),
        (["train", "recipes/digits.yaml", "--precision", "fp64"], "'fp64' is not one of 'auto', 'bf16', 'fp32'"),
        (["train", "recipes/digits.yaml", "--processes", "0"], "greater than or equal to 1"),
        (["train", "recipes/digts.yaml"], "did you mean recipes/digits.yaml?"),
        (["train", "recipes/digits.yaml", "train.lrr=1"], "did you mean train.lr?"),
    ],
)
def test_wrong_usage(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*argv, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and words in captured.err
    last = json.loads(captured.out.splitlines()[-1])
    assert last["exit_code"] == 2 and words in last["error"]


def test_python_m_marcli_ends_with_the_exit_code() -> None:
    done = subprocess.run([sys.executable, "-m", "marcli", "nope"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")


def test_an_interruption_while_modules_load_leaves_no_traceback():
    code = """
import os, signal, sys
from marcli.__main__ import main
class Interrupting:
    def find_spec(self, name, *rest):
        if name == "marcli.cli.app":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
main()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")
