"""The systems of one bench: loaded, named, and with their variants.

A recipe stands for random weights, so that speed can be measured before anything is trained or fetched.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from marcli.bench.plan import Variant
from marcli.bench.request import Planned, Request, variants_of
from marcli.bench.stand_in import stand_in_system
from marcli.errors import UsageError
from marcli.sampling.load import load_system
from marcli.sampling.system import System


@dataclass(frozen=True)
class Entry:
    """A system with the variants of it that are to be measured."""

    system: System
    variants: Sequence[Variant]
    is_random: bool

    def on(self, device: torch.device, dtype: torch.dtype) -> "Entry":
        """The entry on `device`, its model in `dtype`; tokenizers stay in float32."""
        model = self.system.model.to(device=device, dtype=dtype)
        tokenizer = self.system.tokenizer.to(device, memory_format=torch.channels_last)
        return replace(self, system=replace(self.system, model=model, tokenizer=tokenizer))


def load_entries(planned: Sequence[Planned], request: Request) -> tuple[list[Entry], list[str]]:
    """Load every system on the CPU and plan those whose recipe comes with their weights."""
    entries, notes = [], []
    for each in planned:
        if each.is_random:
            system = stand_in_system(each.recipe, seed=request.seed)
        else:
            system = load_system(each.spec, weights=request.weights, overrides=request.overrides)
        variants = each.variants
        if each.recipe is None:
            variants, lines = variants_of(system.recipe, request)
            notes += lines
        if system.note:
            notes.append(f"{system.name}: {system.note}")
        entries.append(Entry(system, variants, each.is_random))
    return shortly_named(entries), notes


def shortly_named(entries: Sequence[Entry]) -> list[Entry]:
    """Name runs by their folder alone where that tells them apart; raises UsageError for one named twice."""
    names = [entry.system.name for entry in entries]
    if len(set(names)) < len(names):
        raise UsageError(f"{max(names, key=names.count)} is named twice: give every run once")
    short = [Path(os.path.abspath(name)).name for name in names]  # of `.`, too
    if len(set(short)) < len(short):
        return list(entries)
    return [replace(entry, system=replace(entry.system, name=name)) for entry, name in zip(entries, short, strict=True)]
