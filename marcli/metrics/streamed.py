"""Moments of more pictures than fit in memory, measured by all processes and through interruptions.

Every process keeps what it has measured of its share in the user's cache, once a minute and when it is asked to stop;
the same command with as many processes goes on from there, to the same last bit.
"""

import contextlib
import hashlib
import json
import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from safetensors import SafetensorError

from marcli.errors import StoppedError
from marcli.metrics.extract import UNIT, FeatureBatch, extract_read, network_batches
from marcli.metrics.features import Extractor
from marcli.metrics.hashed import read_hashed, write_hashed
from marcli.metrics.pictures import PictureSource
from marcli.metrics.statistics import RunningMoments
from marcli.runtime.accelerator import Processes
from marcli.runtime.progress import Progress
from marcli.runtime.stop import StopRequest
from marcli.runtime.user_cache import user_cache

logger = logging.getLogger("marcli.metrics")

KEPT_EVERY = 60.0  # seconds; some 100 MB are written


@dataclass
class Measured:
    """What a process knows after `num_batches` of its batches: moments of all, features of some pictures by index."""

    num_batches: int = 0
    moments: RunningMoments | None = None
    rows: dict[int, np.ndarray] = field(default_factory=dict)

    def add(self, batch: FeatureBatch, wanted: set[int]) -> None:
        """Add a batch, keeping the features of the pictures that are `wanted`."""
        self.moments = self.moments or RunningMoments(batch.features.shape[1])
        self.moments.update(batch.features)
        self.rows |= {index: row for index, row in zip(batch.indices, batch.features, strict=True) if index in wanted}
        self.num_batches += 1


def stream_features(
    source: PictureSource,
    indices: np.ndarray,
    kept: np.ndarray,
    extractor: Extractor,
    *,
    processes: Processes,
    workers: int,
) -> tuple[RunningMoments | None, dict[int, np.ndarray]]:
    """Return the moments of all `indices` and the features of those `kept`, merged over all processes.

    Raises StoppedError after a signal, with everything measured kept.
    """
    units = [indices[start : start + UNIT].tolist() for start in range(0, len(indices), UNIT)]
    batches = [batch for unit in units[processes.rank :: processes.world_size] for batch in network_batches(unit)]
    path = unfinished_path(source, indices, kept, extractor, processes)
    measured, wanted = read_unfinished(path), set(kept.tolist())
    done, total = (sum(map(len, some)) for some in (batches[: measured.num_batches], batches))
    title = f"features of {source.name}"
    with (
        StopRequest() as stop,
        Progress(title=title, total=total, unit="pictures", shown=processes.is_main, done=done) as progress,
    ):
        if done:
            progress.say(f"{done:,} of {total:,} pictures were done before; continuing from {path}.")
        next_time = time.monotonic() + KEPT_EVERY
        for batch in extract_read(source.read, batches[measured.num_batches :], extractor, workers=workers):
            measured.add(batch, wanted)
            progress.advance(len(batch.indices))
            if stop.requested or time.monotonic() > next_time:
                is_kept = write_unfinished(measured, path)
                next_time = time.monotonic() + KEPT_EVERY if is_kept else math.inf
                if stop.requested:
                    goes_on = f"What was measured is kept in {path}: the same command continues."
                    raise StoppedError("Stopped. " + (goes_on if is_kept else "The same command starts again."))
    result = gathered(measured, processes)
    with contextlib.suppress(OSError):
        path.unlink()
    return result


def gathered(measured: Measured, processes: Processes) -> tuple[RunningMoments | None, dict[int, np.ndarray]]:
    """Return moments and features, merged over all processes."""
    if processes.world_size == 1:
        return measured.moments, measured.rows
    parts: list[Any] = [None] * processes.world_size
    dist.all_gather_object(parts, (measured.moments, measured.rows))
    merged, rows = None, {}
    for part, part_rows in parts:
        rows |= part_rows
        if merged is None:
            merged = part
        elif part is not None:
            merged.merge(part)
    return merged, rows


def unfinished_path(
    source: PictureSource, indices: np.ndarray, kept: np.ndarray, extractor: Extractor, processes: Processes
) -> Path:
    """Return where this process keeps what it has measured of these pictures; the name says all it depends on."""
    chosen = hashlib.sha256(indices.astype(np.int64).tobytes() + kept.astype(np.int64).tobytes()).hexdigest()
    facts = json.dumps([source.fingerprint, source.image_size, chosen, extractor.identity], sort_keys=True)
    name = hashlib.sha256(facts.encode()).hexdigest()[:16]
    share = f"{processes.rank + 1}-of-{processes.world_size}"
    return user_cache() / "references" / f"unfinished-{name}-{share}.safetensors"


def write_unfinished(measured: Measured, path: Path) -> bool:
    """Write what was measured until now; whether that worked, else one line says why not."""
    moments, indices = measured.moments, list(measured.rows)
    arrays = {
        "counts": np.array([measured.num_batches, moments.count], dtype=np.int64),
        "mean": moments.mean,
        "scatter": moments.scatter,
        "indices": np.array(indices, dtype=np.int64),
        "rows": np.stack([measured.rows[index] for index in indices]) if indices else np.zeros((0, len(moments.mean))),
    }
    try:
        write_hashed(path, arrays)
    except (OSError, SafetensorError) as error:
        logger.warning("%s cannot be written (%s): an interruption would lose what was measured", path, error)
        return False
    return True


def read_unfinished(path: Path) -> Measured:
    """Return what an interrupted measurement left; nothing where there is none, or where it is damaged."""
    names = ("counts", "mean", "scatter", "indices", "rows")
    arrays = read_hashed(path, names, consequence="the reference is measured from its beginning")
    if arrays is None:
        return Measured()
    moments = RunningMoments(len(arrays["mean"]))
    num_batches, moments.count = arrays["counts"].tolist()
    moments.mean, moments.scatter = arrays["mean"], arrays["scatter"]
    return Measured(num_batches, moments, dict(zip(arrays["indices"].tolist(), arrays["rows"], strict=True)))
