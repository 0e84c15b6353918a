"""`--push-to`: share the run that a command trained or measured."""

from pathlib import Path
from typing import Annotated

import typer

from marcli.errors import UsageError
from marcli.runtime.rundir import RunDir, newest_run

PushTo = Annotated[
    str | None,
    typer.Option(
        metavar="USER/NAME",
        help="Afterwards share the run on the hub, with a model card of its recipe and numbers; "
        "sample and eval-fid take it as hub:USER/NAME.",
    ),
]


def check_push(push_to: str | None) -> None:
    """Raise UsageError, before any work, when sharing could not succeed."""
    if push_to is not None:
        from marcli.pretrained.share import check_can_push

        check_can_push(push_to)


def run_to_share(names: list[str], *, images: str | None, make_stats: Path | None) -> RunDir:
    """Return the run that eval-fid measures; raises UsageError for anything that is no run of this machine."""
    if images is not None or make_stats is not None:
        raise UsageError("--push-to shares a run with its numbers: leave --images and --make-stats out.")
    run = RunDir(names[0]) if names else newest_run()
    if run is None or not run.recipe_path.is_file():
        where = names[0] if names else "runs/"
        raise UsageError(f"--push-to shares a run of this machine, and there is none at {where}: name its folder.")
    return run


def share(run: RunDir | None, push_to: str | None) -> tuple[list[str], dict[str, str]]:
    """Share `run` when asked to; return the lines and the facts to end with."""
    if push_to is None:
        return [], {}
    from marcli.pretrained.share import push_run

    address = push_run(run, push_to)
    return [f"Shared: {address}  (marcli sample hub:{push_to})"], {"shared": address}
