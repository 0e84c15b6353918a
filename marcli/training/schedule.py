"""How long to train, how fast and in which shares: plain numbers, without state and without torch.

Steps are counted from 0 (the number of optimizer steps already taken), so no step is spent at a rate of zero.
"""

import math

from marcli.errors import UsageError
from marcli.recipe.train import Train


def check_shares(train: Train, world_size: int) -> None:
    """Raise UsageError when the global batch cannot be shared equally."""
    if train.batch_size % world_size:
        raise UsageError(
            f"train.batch_size {train.batch_size} cannot be shared by {world_size} processes: "
            "choose a multiple, or another number of processes"
        )


def total_steps(train: Train, *, num_images: int) -> int:
    """Return the optimizer steps of a whole run over `num_images` training images."""
    if train.steps is not None:
        return train.steps
    return max(1, math.ceil(train.epochs * num_images / train.batch_size))


def warmup_steps(train: Train, *, num_images: int) -> int:
    """Return the optimizer steps of the linear warm-up; a shorter run ends inside it."""
    if train.warmup_epochs is not None:
        return math.ceil(train.warmup_epochs * num_images / train.batch_size)
    return train.warmup_steps or 0


def learning_rate(train: Train, step: int, *, warmup: int, total: int) -> float:
    """Return the learning rate of the step that follows `step` finished ones.

    Linear from `lr / warmup` to `lr`, then constant, or a half cosine that would reach 0 at `total`.
    """
    if step < warmup:
        return train.lr * (step + 1) / warmup
    if train.lr_schedule == "constant":
        return train.lr
    return train.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
