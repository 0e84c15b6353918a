"""The one place that knows ranks and devices.

Accelerate runs one copy of the program per device. Left alone it starts two unrelated copies when torchrun finds no
GPU, and it shards or compiles the model where `accelerate launch` was told to, which checkpoints and the average of the
weights know nothing of; both are made errors here.
"""

import atexit
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    DynamoBackend,
    InitProcessGroupKwargs,
    broadcast_object_list,
)
from torch import nn

from marcli.errors import MarcliError, UsageError
from marcli.runtime.launch import follow_launcher, join_slurm_step
from marcli.runtime.memory import keep_freed_memory

Precision = Literal["auto", "bf16", "fp32"]
T = TypeVar("T")

# What one process does alone while the others wait: hash a cache of 42 GB, write a checkpoint of 15 GB, sample a grid.
PATIENCE = timedelta(hours=2)
PLAIN = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)

log = logging.getLogger("marcli")


@dataclass(frozen=True)
class Processes:
    """This process among the `world_size` that run the same program."""

    rank: int
    world_size: int
    device: torch.device
    accelerator: Accelerator

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and progress."""
        return self.rank == 0

    @property
    def precision(self) -> Literal["bf16", "fp32"]:
        """Arithmetic of the forward passes under `accelerator.autocast()`; weights stay fp32."""
        return "bf16" if self.accelerator.mixed_precision == "bf16" else "fp32"

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is set in any process, in all of them alike; all must call it."""
        if self.world_size == 1:
            return flag
        votes = torch.tensor(int(flag), device=self.device)
        return bool(self.accelerator.reduce(votes, reduction="sum").item())

    def on_main(self, find: Callable[[], T]) -> T:
        """Return what `find` returns in the main process, in all of them alike; all must call it."""
        return broadcast_object_list([find() if self.is_main else None])[0]

    def prepared(self, model: nn.Module) -> nn.Module:
        """The model behind autocast and the averaging of gradients; itself where it needs neither.

        There Accelerate would do nothing either, but would import distributed tensors, and sympy, to see that.
        """
        return model if self.world_size == 1 and self.precision == "fp32" else self.accelerator.prepare(model)

    def wait(self) -> None:
        """Wait for all processes."""
        self.accelerator.wait_for_everyone()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main process do something (a download, a file) that the others then find done."""
        with self.accelerator.main_process_first():
            yield


def visible_gpus() -> int:
    """Return the number of CUDA devices this program may use; an Apple GPU counts as one."""
    if torch.cuda.is_available():
        return torch.cuda.device_count()
    return int(torch.backends.mps.is_available())


def count_gpus(gpus: str) -> int:
    """Return how many GPUs `--gpus auto|N|0` means here; raises UsageError for more than there are."""
    there = visible_gpus()
    if gpus == "auto":
        return there
    if not gpus.isdecimal():
        raise UsageError(f"--gpus is {gpus!r}: give auto, 0 for the CPU, or a number of GPUs")
    if int(gpus) > there:
        raise UsageError(f"--gpus {gpus} asks for more GPUs than this machine shows ({there}): use --gpus auto")
    return int(gpus)


def start_processes(*, precision: Precision, gpus: str) -> Processes:
    """Join the other processes, if a launcher started any, and return this one's place and device.

    `precision` "auto" is bf16 on CUDA devices that have it, else fp32. `gpus` is "auto", "0" for the CPU, or a number.
    Raises UsageError for devices that are not there and for sharded models, MarcliError when the processes do not find
    each other.
    """
    follow_launcher()
    by_srun = join_slurm_step()
    for plugin in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{plugin}", "false").lower() in ("1", "true"):
            raise _not_plain(plugin)
    world_size, local_rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    on_cpu = count_gpus(gpus) == 0
    one_each = by_srun and visible_gpus() == 1  # srun --gpus-per-task=1 shows every process its own GPU alone
    if not on_cpu and local_rank >= visible_gpus() and not one_each:
        raise UsageError(
            f"process {local_rank} of this machine has no GPU, since there are {visible_gpus()}: "
            "start one process per GPU, or give --gpus 0 for the CPU"
        )
    if on_cpu:
        keep_freed_memory()
    if world_size == 1:  # Accelerate remembers the settings of an earlier call in this process
        AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision="bf16" if resolve_precision(precision, on_cpu=on_cpu) == "bf16" else "no",
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=PATIENCE),
            # Gradients lie where they are averaged instead of being copied there; no buffer of a model ever changes.
            DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False),
        ],
    )
    if accelerator.num_processes != world_size:
        raise MarcliError(
            f"WORLD_SIZE is {world_size}, but {accelerator.num_processes} process(es) found each other: "
            "start with --gpus or --processes, or with torchrun"
        )
    if accelerator.distributed_type not in PLAIN:
        raise _not_plain(accelerator.distributed_type.value)
    if accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        raise _not_plain(f"dynamo ({accelerator.state.dynamo_plugin.backend.value})")
    if on_cpu and precision == "bf16" and accelerator.is_main_process and not cpu_has_bf16():
        log.warning("this CPU has no instructions for bf16 and emulates it, which is slower than --precision fp32")
    if world_size > 1:
        atexit.register(_leave_group)
    return Processes(
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        device=accelerator.device,
        accelerator=accelerator,
    )


def _not_plain(what: str) -> UsageError:
    return UsageError(
        f"accelerate was told to use {what}, and every process must hold a whole, plain model: turn it off in "
        "`accelerate config`, or start with --gpus instead of `accelerate launch`"
    )


def synchronise(device: torch.device) -> None:
    """Wait until `device` has done everything asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _leave_group() -> None:
    """End gloo's threads before the interpreter goes; otherwise they abort it now and then (SIGABRT)."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def cpu_has_bf16() -> bool:
    """Whether oneDNN multiplies bf16 matrices on this CPU instead of emulating it; True where it cannot be asked."""
    ask = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return ask is None or ask()


def resolve_precision(precision: Precision, *, on_cpu: bool) -> Literal["bf16", "fp32"]:
    """Return what `precision` means on this machine: bf16 is faster and safe only where the GPU has it."""
    if precision != "auto":
        return precision
    return (
        "bf16"
        if not on_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        else "fp32"
    )
