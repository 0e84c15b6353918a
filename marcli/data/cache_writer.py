"""Writing a latent cache so that it can be killed at any point.

The file has its full size from the start (a full disk is found before any encoding). A shard is encoded, written at its
place, flushed, and only then recorded in a small file of its own; what is recorded is done, the rest is done again.
Processes share nothing but the folder, so their number may change between attempts.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from marcli.data.ahead import ahead
from marcli.data.crop import BrokenImageError
from marcli.data.images import ImageSet
from marcli.data.latents import (
    DATA_START,
    DTYPES,
    FILE,
    MANIFEST,
    PLAN,
    SHARDS,
    TORCH_DTYPES,
    CachePlan,
    content_hash,
    differing,
    find_damaged,
    labels_hash,
)
from marcli.errors import MarcliError, UsageError
from marcli.runtime.atomic import remove_partials, write_json

ENCODE_IMAGES = 32  # pictures per pass of the tokenizer; part of the arithmetic, so not an option


def read_plan(folder: Path) -> CachePlan | None:
    """Return the plan of a cache that was begun in `folder`, None where there is none; raises MarcliError."""
    try:
        return CachePlan.from_json(json.loads((folder / PLAN).read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise MarcliError(f"{folder / PLAN} is damaged ({error}): delete {folder} and cache again") from None


def begin(folder: Path, plan: CachePlan, labels: np.ndarray) -> list[int]:
    """Prepare `folder` for writing, or for going on, and return the shards still to encode.

    Shards that are recorded but damaged are forgotten, so that they are encoded again.

    Raises:
        UsageError: the folder holds a cache with another plan
        MarcliError: not enough disk space
    """
    before = read_plan(folder)
    if before is not None and before != plan:
        raise UsageError(
            f"{folder} holds a cache made otherwise ({'; '.join(differing(before, plan))}): "
            "give another folder with data.latents, or delete it"
        )
    with disk_errors(folder, needed=plan.file_bytes):
        (folder / SHARDS).mkdir(parents=True, exist_ok=True)
        remove_partials(folder / SHARDS)
        allocate(folder / FILE, plan, labels)
        if before is None:
            write_json(folder / PLAN, asdict(plan))
        recorded = {shard: record["sha256"] for shard, record in recorded_shards(folder, plan).items()}
        for shard in find_damaged(folder / FILE, plan, recorded):
            del recorded[shard]
        pending = [shard for shard in range(plan.num_shards) if shard not in recorded]
        for shard in pending:
            shard_record(folder, shard).unlink(missing_ok=True)
        if pending:
            (folder / MANIFEST).unlink(missing_ok=True)
    return pending


def allocate(file: Path, plan: CachePlan, labels: np.ndarray) -> None:
    """Give the file its size, header and labels, keeping the rows that are there."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if os.fstat(descriptor).st_size > plan.file_bytes:
            os.ftruncate(descriptor, plan.file_bytes)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, plan.file_bytes)
        else:
            os.ftruncate(descriptor, plan.file_bytes)
        _write_at(descriptor, plan.header(), 0)
        _write_at(descriptor, labels.astype("<i8").tobytes(), DATA_START + plan.rows_bytes)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def decode_shards(
    images: ImageSet, plan: CachePlan, shards: Sequence[int], *, threads: int
) -> Iterator[tuple[int, list[np.ndarray | BrokenImageError]]]:
    """Yield each shard with its pictures, or why one cannot be read, while threads decode as many more."""

    def decode(index: int) -> np.ndarray | BrokenImageError:
        try:
            return images.square(index)
        except BrokenImageError as error:
            return error

    indices = chain.from_iterable(map(plan.shard_range, shards))
    decoded = ahead(decode, indices, threads=threads, most=plan.shard_images)
    for shard in shards:
        yield shard, list(islice(decoded, len(plan.shard_range(shard))))


def encode_shard(
    squares: list[np.ndarray | BrokenImageError], plan: CachePlan, *, encode: Callable[[Tensor], Tensor]
) -> np.ndarray:
    """Return the rows [images, flips, *row] of one shard; unreadable pictures become zeros.

    `encode` maps uint8 images [b, c, s, s] to rows [b, r, s, s]. Raises MarcliError for rows that 16 bits cannot hold.
    """
    rows = np.zeros((len(squares), plan.flips, *plan.row_shape), dtype=DTYPES[plan.dtype])
    readable = [place for place, square in enumerate(squares) if isinstance(square, np.ndarray)]
    for start in range(0, len(readable), ENCODE_IMAGES):
        places = readable[start : start + ENCODE_IMAGES]
        pixels = torch.from_numpy(np.stack([squares[place] for place in places]))
        for flip in range(plan.flips):
            rows[places, flip] = _to_rows(encode(pixels.flip(-1) if flip else pixels), plan)
    return rows


def write_shard(
    folder: Path, plan: CachePlan, shard: int, rows: np.ndarray, skipped: list[tuple[int, str, str]]
) -> None:
    """Write a shard's rows at their place, flush them, and record them.

    `skipped` holds index, name and reason of unreadable pictures. Raises MarcliError on a full disk.
    """
    content = rows.tobytes()
    with disk_errors(folder):
        descriptor = os.open(folder / FILE, os.O_WRONLY)
        try:
            _write_at(descriptor, content, DATA_START + plan.shard_range(shard).start * plan.image_bytes)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        write_json(shard_record(folder, shard), {"sha256": hashlib.sha256(content).hexdigest(), "skipped": skipped})


def finish(folder: Path, plan: CachePlan, *, made_with: dict[str, object], data_path: str) -> dict:
    """Write and return the manifest once every shard is recorded.

    `made_with` and `data_path`, what the recipe said, are kept beside, outside the hash.
    """
    records = recorded_shards(folder, plan)
    missing = [shard for shard in range(plan.num_shards) if shard not in records]
    if missing:
        raise MarcliError(f"{len(missing)} shards of {folder} are missing: run marcli cache-latents RECIPE again")
    manifest = {
        "plan": asdict(plan),
        "shards": [records[shard]["sha256"] for shard in range(plan.num_shards)],
        "labels": labels_hash(folder / FILE, plan),
        "skipped": [row for shard in range(plan.num_shards) for row in records[shard]["skipped"]],
        "made_with": made_with,
        "data_path": data_path,
    }
    manifest = json.loads(json.dumps(manifest))  # hash what a reader will see
    if len(manifest["skipped"]) == plan.num_images:
        raise MarcliError(f"none of the {plan.num_images} images can be read: check data.path")
    manifest["hash"] = content_hash(manifest)
    with disk_errors(folder):
        write_json(folder / MANIFEST, manifest)
    return manifest


def recorded_shards(folder: Path, plan: CachePlan) -> dict[int, dict]:
    """Return the records of finished shards; a damaged record counts as none."""
    records = {}
    for shard in range(plan.num_shards):
        try:
            record = json.loads(shard_record(folder, shard).read_text())
            if isinstance(record["sha256"], str) and isinstance(record["skipped"], list):
                records[shard] = record
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return records


def count_recorded(folder: Path) -> int:
    """Return how many shards are recorded, without reading them."""
    return sum(entry.name.endswith(".json") and not entry.name.startswith(".") for entry in os.scandir(folder / SHARDS))


def shard_record(folder: Path, shard: int) -> Path:
    """Where the record of a shard lies."""
    return folder / SHARDS / f"{shard:06d}.json"


@contextmanager
def disk_errors(folder: Path, *, needed: int | None = None) -> Iterator[None]:
    """Turn a full disk into a sentence; `needed` are the bytes of the whole cache."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            size = f" of {needed / 1e9:,.2f} GB" if needed else ""
            raise MarcliError(
                f"there is no space left for the cache{size} in {folder}: free some, or give another folder with "
                "data.latents; what is written stays, and the same command goes on from there"
            ) from None
        raise


def _to_rows(rows: Tensor, plan: CachePlan) -> np.ndarray:
    if plan.dtype == "F16" and not bool(torch.isfinite(rows.half()).all()):
        raise MarcliError("the tokenizer's latents overflow 16-bit floats or are not numbers: check its weights")
    return rows.to(TORCH_DTYPES[plan.dtype]).cpu().numpy()


def _write_at(descriptor: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
