"""Collecting the features of exactly N pictures over processes and interruptions.

Work is cut into units fixed by picture index, and processes take whole ones in turn. What comes out is ordered by
index, so scores do not depend on who computed what, or when.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from marcli.errors import StoppedError
from marcli.metrics.extract import UNIT, FeatureBatch, extract_read, network_batches
from marcli.metrics.features import Extractor
from marcli.metrics.pictures import PictureSource
from marcli.metrics.spool import FeatureSpool
from marcli.runtime.accelerator import Processes
from marcli.runtime.progress import Progress
from marcli.runtime.stop import StopRequest

Produce = Callable[[Sequence[Sequence[int]]], Iterator[FeatureBatch]]


@dataclass(frozen=True)
class Collected:
    """Features of all pictures in the order of their indices, and which of these show one single colour."""

    features: Float[np.ndarray, "images dim"]
    blank: Bool[np.ndarray, " images"]


def collect(
    units: Sequence[Sequence[int]],
    produce: Produce,
    *,
    folder: Path,
    settings: dict[str, object],
    processes: Processes,
    title: str,
) -> Collected | None:
    """Return the features of all units, computing those that are not in `folder` yet; on the main process only.

    `produce` yields one batch per unit it is given, in order. `settings` is everything the features depend on: other
    settings never meet. Raises StoppedError after a signal, with every finished unit kept.
    """
    spool = FeatureSpool(folder, settings=settings, units=units)
    missing = processes.on_main(spool.missing)
    mine = missing[processes.rank :: processes.world_size]
    total, present = sum(map(len, units)), sum(map(len, units)) - sum(len(units[number]) for number in missing)
    with (
        StopRequest() as stop,
        Progress(title=title, total=total, unit="pictures", shown=processes.is_main, done=present) as progress,
    ):
        if present:
            progress.say(f"{present:,} of {total:,} pictures were done before; continuing from {spool.path}.")
        stream = produce([units[number] for number in mine])
        for number, batch in zip(mine, stream, strict=True):
            spool.write(number, batch)
            progress.advance(min(len(batch.indices) * processes.world_size, total - progress.done))
            if stop.requested:  # after the last one, too: other seeds and the scores are still to come
                raise StoppedError(f"Stopped. Features are kept in {spool.path}: the same command continues.")
    processes.wait()
    return Collected(*spool.read_all()) if processes.is_main else None


def collect_pictures(
    source: PictureSource,
    indices: np.ndarray,
    extractor: Extractor,
    *,
    folder: Path,
    processes: Processes,
    workers: int,
) -> Collected | None:
    """Return the features of stored pictures, as `collect`."""
    units = [indices[start : start + UNIT].tolist() for start in range(0, len(indices), UNIT)]

    def produce(wanted: Sequence[Sequence[int]]) -> Iterator[FeatureBatch]:
        batches = (batch for unit in wanted for batch in network_batches(unit))
        stream = extract_read(source.read, batches, extractor, workers=workers)
        for unit in wanted:
            parts, count = [], 0
            while count < len(unit):
                parts.append(next(stream))
                count += len(parts[-1].indices)
            features = np.concatenate([part.features for part in parts])
            yield FeatureBatch(list(unit), features, np.concatenate([part.blank for part in parts]))

    settings = {"pictures": source.fingerprint, "image_size": source.image_size, **extractor.identity}
    return collect(units, produce, folder=folder, settings=settings, processes=processes, title="features")
