"""Options that several commands share, and what becomes of mixed arguments."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from marcli.errors import UsageError
from marcli.sampling import naming

RecipeFile = Annotated[
    Path,
    typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one, e.g. recipes/digits.yaml."),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Recipe keys to change, e.g. train.lr=1e-4.")
]
RunAndOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN KEY=VALUE",
        help="A run's folder, a weights file, a published name (mar-b, mar-l, mar-h, dit-xl-2) or hub:USER/NAME; "
        "without it the newest run under runs/. Then recipe keys to change.",
    ),
]
Gpus = Annotated[str, typer.Option(help="auto: every GPU there is; a number of GPUs; 0: the CPU.")]
NumProcesses = Annotated[int, typer.Option("--processes", min=1, help="Processes on the CPU.")]
Precision = Annotated[
    Literal["auto", "bf16", "fp32"], typer.Option(help="Arithmetic; auto: bf16 where the GPU has it, else fp32.")
]
TokenizerPrecision = Annotated[
    Literal["auto", "bf16", "fp32"], typer.Option("--precision", help="Arithmetic of the tokenizer; auto is fp32.")
]
Engine = Annotated[
    naming.EngineName, typer.Option(help="How to run the same computation; auto: the fastest exact way.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only print the resolved recipe, parameter counts and where things go.")
]
AsJson = Annotated[bool, typer.Option("--json", help="End with the result as one line of JSON on standard output.")]
Seed = Annotated[int, typer.Option(min=0, help="Image i of a seed is the same picture everywhere.")]
Weights = Annotated[naming.Weights, typer.Option(help="The averaged weights, or the last ones of training.")]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Pictures generated together; default: the recipe's sample.batch_size.")
]
Steps = Annotated[int | None, typer.Option(min=1, help="AR steps; default: the recipe's.")]
Cfg = Annotated[float | None, typer.Option(min=1, help="Guidance scale, 1 for none; default: the recipe's.")]
CfgSchedule = Annotated[
    Literal["linear", "constant"] | None, typer.Option(help="Guidance grows with progress, or stays.")
]
Temperature = Annotated[
    float | None, typer.Option(help="Factor on the sampling noise, above 0; default: the recipe's.")
]
DiffusionSteps = Annotated[int | None, typer.Option(min=1, max=1000, help="Diffusion steps; default: the recipe's.")]
FastPreset = Annotated[
    str | None,
    typer.Option(
        "--fast-preset",
        metavar="NAME",
        help="Approximate for speed: disa, swift, turbo or lazy; settings given beside it win. Default: exact.",
    ),
]
Classes = Annotated[str, typer.Option(help="Class numbers such as 207,360, or all.")]


def split_overrides(arguments: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Return the arguments that name things, and those that are key=value; a file that exists is a name."""
    names: list[str] = []
    overrides: list[str] = []
    for argument in arguments or ():
        is_override = "=" in argument and not exists(argument)
        (overrides if is_override else names).append(argument)
    return names, overrides


def exists(name: str) -> bool:
    """Whether there is a file or folder of this name; a text too long to be a name is not one."""
    try:
        return Path(name).exists()
    except OSError:
        return False


def preset_overrides(name: str | None) -> list[str]:
    """Return what `--fast-preset` stands for; put it first, so that everything given beside it wins."""
    if name is None:
        return []
    from marcli.recipe.approximate import PRESETS, overrides_of  # pydantic, which --help does without

    if name not in PRESETS:
        raise UsageError(f"--fast-preset {name!r} does not exist: choose {', '.join(PRESETS)}")
    return overrides_of(name)


def sampling_overrides(**options: object) -> list[str]:
    """Return options given on the command line as recipe overrides: `steps=64` becomes `sample.steps=64`."""
    return [f"sample.{name}={value}" for name, value in options.items() if value is not None]
