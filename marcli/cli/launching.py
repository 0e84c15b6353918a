"""From `--gpus` and `--processes` to the number of processes, and into them."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import typer

from marcli.errors import UsageError
from marcli.runtime.launch import is_worker, launch

COMMAND_LINE: ContextVar[tuple[str, ...]] = ContextVar("command_line")


def spread(*, gpus: str, processes: int) -> None:
    """Run this command line in as many processes as asked for, then end; return at once where one is enough.

    Returns, too, in a process that torchrun, srun or `accelerate launch` started. Call it after all cheap checks.
    """
    if is_worker():
        return
    num_processes = count_processes(gpus=gpus, processes=processes)
    if num_processes > 1:
        launch(COMMAND_LINE.get(), num_processes=num_processes)
        raise typer.Exit


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import torch without the garbage collector: it takes a tenth of the time and finds nothing, now or later."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def count_processes(*, gpus: str, processes: int) -> int:
    """Return one process per GPU, or `processes` on the CPU; raises UsageError when both are asked for."""
    if gpus == "0":
        return processes
    with quick_imports():
        from marcli.runtime.accelerator import count_gpus

    num_gpus = count_gpus(gpus)
    if num_gpus and processes > 1:
        raise UsageError(
            "--processes counts processes on the CPU: add --gpus 0, or choose the number of --gpus instead"
        )
    return num_gpus or processes
