"""The command line: six commands, `--version`, and one guarded call.

Nothing here imports torch, or pydantic with the recipes, so that `--help` answers at once: commands import what they
need when they run.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from marcli.cli import launching
from marcli.cli.bench import bench
from marcli.cli.cache_latents import cache_latents
from marcli.cli.errors import run_guarded
from marcli.cli.eval_fid import eval_fid
from marcli.cli.sample import sample
from marcli.cli.tokenize import tokenize
from marcli.cli.train import train
from marcli.runtime.home import words_at_home

EXAMPLES = {
    tokenize: "marcli tokenize photos/ --tokenizer kl16 --out runs/tokenizer",
    cache_latents: "marcli cache-latents recipes/mar_l.yaml data.path=/data/imagenet --gpus 4",
    train: "marcli train recipes/digits.yaml train.steps=500 train.lr=5e-4",
    sample: "marcli sample runs/digits --num 100 --classes 3,7 --steps 8 --cfg 2",
    eval_fid: "marcli eval-fid runs/digits --num 1797 --features pixels --reference digits",
    bench: "marcli bench runs/digits --steps 1,2,4,8,16",
}

app = typer.Typer(
    help="Autoregressive image generation without vector quantization: train, sample, measure, compare.",
    epilog="Start here: marcli train recipes/digits.yaml, then marcli sample. Every command takes -h.",
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command, example in EXAMPLES.items():
    first_line = (command.__doc__ or "").splitlines()[0]
    app.command(command.__name__.replace("_", "-"), epilog=f"Example: {example}", short_help=first_line)(command)


def print_version(asked: bool) -> None:
    """Print the versions of marcli and torch and the device that commands would use; the one use of torch here."""
    if not asked:
        return
    import torch

    from marcli import __version__
    from marcli.runtime.accelerator import count_gpus

    name = "cpu"
    if count_gpus("auto"):
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else "mps"
    typer.echo(f"marcli {__version__}, torch {torch.__version__}, device {name}")
    raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print versions and device, and end."),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


def wait_briefly() -> None:
    """Where others keep this machine busy, have OpenMP's threads sleep soon while they wait; before torch is imported.

    By default they spin for milliseconds and keep a core from the very thread they wait for: beside four busy programs,
    sampling small pictures on two cores took three times as long. On a quiet machine it is spinning that is faster.
    """
    if sys.platform != "linux":
        return
    # The load alone may be that of a command which has just ended, what runs now that of one which is starting.
    is_busy = min(os.getloadavg()[0], others_running()) > (os.cpu_count() or 1) / 2
    if is_busy and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # what libgomp itself takes where it knows of the others


def others_running() -> int:
    """Threads beside this one that run on this Linux machine now, or could."""
    running = Path("/proc/loadavg").read_text().split()[3].partition("/")[0]
    return int(running) - 1


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code: 0 done, 1 failed, 2 wrong usage, 75 stopped on request."""
    words = words_at_home(argv)
    launching.COMMAND_LINE.set(tuple(words))
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries would bury the one sentence that says what to do
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # they would fill a log
    wait_briefly()
    args = words or ["--help"]
    return run_guarded(lambda: app(args, prog_name="marcli", standalone_mode=False), as_json="--json" in argv)
