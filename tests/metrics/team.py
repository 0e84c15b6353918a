"""Processes without a launcher: each of several ranks runs in turn, on the CPU."""

from collections.abc import Callable

import torch

from marcli.runtime.accelerator import Processes


class OneOf(Processes):
    """Rank `rank` of `world_size`; waiting for the others is nothing, since they run before or after."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        for name, value in {"rank": rank, "world_size": world_size, "device": torch.device("cpu")}.items():
            object.__setattr__(self, name, value)

    def wait(self) -> None:
        """Others run one after the other."""

    def any(self, flag: bool) -> bool:
        """The vote of one."""
        return flag

    def on_main(self, find: Callable[[], object]) -> object:
        """What the main process would find, were it here."""
        return find()
