"""Randomness belongs to the item: a generator per (seed, index, ...), never one stream shared by a batch."""

import hashlib

import torch


def item_seed(*keys: int | str) -> int:
    """Return 63 bits that depend on all `keys`, their types and their order, and on nothing else."""
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in keys)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def item_generator(*keys: int | str) -> torch.Generator:
    """Return a CPU generator for the item named by `keys`, the same on every machine, rank and batch size."""
    return torch.Generator().manual_seed(item_seed(*keys))
