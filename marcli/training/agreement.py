"""What the processes of a run must see alike at every step: a stop request and the mean loss.

Stop votes travel between the hosts over gloo, beside the device's own traffic, so that no process waits for its GPU
to learn of them.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from marcli.runtime.accelerator import PATIENCE, Processes


class Agreement:
    """Collectives over all processes; every method must be called by all of them, in the same order."""

    def __init__(self, processes: Processes):
        self.processes = processes
        self.alone = processes.world_size == 1
        self.hosts = None if self.alone else dist.new_group(backend="gloo", timeout=PATIENCE)

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is set in any process."""
        if self.alone:
            return flag
        votes = torch.tensor(int(flag))
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.hosts)
        return bool(votes)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of `value` over the processes, on the device."""
        return value if self.alone else self.processes.accelerator.reduce(value, reduction="mean")
