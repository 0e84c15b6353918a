"""The latent cache: what it holds, how it is checked, how rows are read.

One file, `latents.safetensors`, holds `rows` [images, flips, rows, s, s] and `labels` [images], so that any tool can
read it and a random batch is one gather from one memory map: no file, no header and no table per image. Shards are
ranges of its rows, each with its sha256. `manifest.json` is written last; without it a cache is not complete.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from marcli.errors import MarcliError

FILE, MANIFEST, PLAN, SHARDS, TOKENIZER = "latents.safetensors", "manifest.json", "plan.json", "shards", "tokenizer"
VERSION = 1
SHARD_IMAGES = 256  # lost at most, per process, when killed
DATA_START = 4096  # rows begin on a page
DTYPES = {"F16": np.dtype("<f2"), "U16": np.dtype("<u2"), "U8": np.dtype("u1")}
TORCH_DTYPES = {"F16": torch.float16, "U16": torch.uint16, "U8": torch.uint8}


@dataclass(frozen=True)
class CachePlan:
    """What decides every byte of a cache. Two caches with equal plans are the same cache.

    Attributes:
        images: fingerprint of the pictures, their order, crop and labels
        image_size, channels: of the pictures, in pixels
        tokenizer: fingerprint of the tokenizer that made the rows
        scale: the tokenizer's scale (rows are unscaled)
        num_images: rows of the cache, unreadable pictures included (as zeros)
        flips: 2 when every picture is stored mirrored, too
        row_shape: channels, height and width of one row
        dtype: F16 (moments), U16 (codes) or U8 (pixels)
        precision: arithmetic of the encoder, fp32 or bf16
        shard_images: pictures per shard
    """

    images: str
    image_size: int
    channels: int
    tokenizer: str
    scale: float
    num_images: int
    flips: int
    row_shape: tuple[int, int, int]
    dtype: str
    precision: str
    shard_images: int = SHARD_IMAGES
    version: int = VERSION

    @classmethod
    def from_json(cls, record: dict) -> "CachePlan":
        """Undo `asdict` after JSON; raises KeyError or TypeError."""
        values = {field.name: record[field.name] for field in fields(cls)}
        return cls(**values | {"row_shape": tuple(record["row_shape"])})

    @property
    def row_elements(self) -> int:
        """Numbers in one row of one flip."""
        return int(np.prod(self.row_shape))

    @property
    def image_bytes(self) -> int:
        """Bytes of one picture's rows, both flips."""
        return self.flips * self.row_elements * DTYPES[self.dtype].itemsize

    @property
    def rows_bytes(self) -> int:
        """Bytes of all rows."""
        return self.num_images * self.image_bytes

    @property
    def file_bytes(self) -> int:
        """Bytes of the whole file."""
        return DATA_START + self.rows_bytes + 8 * self.num_images

    @property
    def num_shards(self) -> int:
        """Shards, the last one possibly shorter."""
        return -(-self.num_images // self.shard_images)

    def shard_range(self, shard: int) -> range:
        """Return the pictures of a shard."""
        return range(shard * self.shard_images, min((shard + 1) * self.shard_images, self.num_images))

    def header(self) -> bytes:
        """Return the safetensors header, padded so that the rows begin at `DATA_START`."""
        entries = {
            "rows": {
                "dtype": self.dtype,
                "shape": [self.num_images, self.flips, *self.row_shape],
                "data_offsets": [0, self.rows_bytes],
            },
            "labels": {
                "dtype": "I64",
                "shape": [self.num_images],
                "data_offsets": [self.rows_bytes, self.rows_bytes + 8 * self.num_images],
            },
        }
        text = json.dumps(entries).encode()
        return struct.pack("<Q", DATA_START - 8) + text.ljust(DATA_START - 8)


class LatentCache:
    """A complete cache, mapped into memory.

    Attributes:
        labels: int64 [num_images], of the readable pictures
        manifest: the manifest as written
        plan: what decides the cache's content
    """

    def __init__(self, folder: Path, *, verify: bool) -> None:
        """Open a cache; with `verify`, every shard is read and checked against its sha256.

        Raises:
            MarcliError: there is none, it is incomplete, truncated or damaged
        """
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.plan = CachePlan.from_json(self.manifest["plan"])
        check_size(folder / FILE, self.plan)
        if verify:
            check_content(folder, self.manifest)
        data = np.asarray(np.memmap(folder / FILE, mode="r", dtype=np.uint8, offset=DATA_START))
        rows = data[: self.plan.rows_bytes].view(_lane(self.plan))
        self._rows = rows.reshape(self.plan.num_images * self.plan.flips, -1)
        skipped = {index for index, _, _ in self.manifest["skipped"]}
        self._row_of = None
        all_labels = data[self.plan.rows_bytes :].view("<i8")
        if skipped:
            self._row_of = np.array([i for i in range(self.plan.num_images) if i not in skipped], dtype=np.int64)
            all_labels = all_labels[self._row_of]
        self.labels = np.array(all_labels, dtype=np.int64)

    @property
    def num_images(self) -> int:
        """Readable pictures."""
        return len(self.labels)

    @property
    def hash(self) -> str:
        """sha256 of the content; the same for any number of processes and interruptions."""
        return self.manifest["hash"]

    def rows(self, indices: np.ndarray, flips: np.ndarray) -> Shaped[Tensor, "batch rows s s"]:
        """Return a contiguous copy of the rows of pictures `indices`, the mirrored ones where `flips`.

        Runs without the interpreter's lock, so threads read in parallel.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        if self._row_of is not None:
            chosen = self._row_of[chosen]
        if self.plan.flips == 2:
            chosen = 2 * chosen + flips
        elif np.any(flips):
            raise MarcliError(f"{self.folder} holds no mirrored rows: cache again with data.horizontal_flip=true")
        gathered = np.take(self._rows, chosen, axis=0)
        flat = torch.from_numpy(gathered).view(TORCH_DTYPES[self.plan.dtype])
        return flat.view(len(chosen), *self.plan.row_shape)


def read_manifest(folder: Path) -> dict:
    """Return the manifest of a complete cache; raises MarcliError."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        plan = CachePlan.from_json(manifest["plan"])
        complete = len(manifest["shards"]) == plan.num_shards and manifest["hash"] == content_hash(manifest)
        complete = complete and {"made_with", "data_path"} <= manifest.keys()
    except FileNotFoundError:
        state = "is not finished" if (folder / PLAN).exists() else "does not exist"
        raise MarcliError(f"the latent cache {folder} {state}: run marcli cache-latents RECIPE") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MarcliError(f"{folder / MANIFEST} is damaged ({error}): run marcli cache-latents RECIPE again") from None
    if not complete:
        raise MarcliError(f"{folder / MANIFEST} is damaged: run marcli cache-latents RECIPE again")
    if plan.version != VERSION:
        raise MarcliError(f"{folder} has cache format {plan.version}, this marcli reads {VERSION}: cache again")
    return manifest


def content_hash(manifest: dict) -> str:
    """Hash the plan, the shards, the labels and which pictures are skipped; no paths, names or times."""
    content = [manifest["plan"], manifest["shards"], manifest["labels"], [row[0] for row in manifest["skipped"]]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_size(file: Path, plan: CachePlan) -> None:
    """Raise MarcliError when the file is missing, too short or too long, or has another header."""
    try:
        size = file.stat().st_size
        with open(file, "rb") as stream:
            header = stream.read(DATA_START)
    except OSError as error:
        raise MarcliError(f"{file} cannot be read ({error.strerror}): run marcli cache-latents RECIPE again") from None
    if size != plan.file_bytes or header != plan.header():
        raise MarcliError(
            f"{file} has {size:,} bytes instead of {plan.file_bytes:,}, or a damaged header: "
            "run marcli cache-latents RECIPE again, which encodes only what is damaged"
        )


def check_content(folder: Path, manifest: dict) -> None:
    """Raise MarcliError that names the first damaged shard."""
    plan = CachePlan.from_json(manifest["plan"])
    damaged = find_damaged(folder / FILE, plan, dict(enumerate(manifest["shards"])))
    if damaged:
        images = plan.shard_range(damaged[0])
        raise MarcliError(
            f"{folder / FILE} is damaged: {len(damaged)} of {plan.num_shards} shards differ from their sha256, the "
            f"first holds images {images[0]}..{images[-1]}: run marcli cache-latents RECIPE again to encode only those"
        )
    if labels_hash(folder / FILE, plan) != manifest["labels"]:
        raise MarcliError(f"the labels in {folder / FILE} are damaged: run marcli cache-latents RECIPE again")


def find_damaged(file: Path, plan: CachePlan, hashes: dict[int, str]) -> list[int]:
    """Return the shards among `hashes` whose bytes in `file` have another sha256, in order."""
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda shard: shard_hash(file, plan, shard), hashes)
        return sorted(shard for shard, value in zip(hashes, found, strict=True) if value != hashes[shard])


def shard_hash(file: Path, plan: CachePlan, shard: int) -> str:
    """Return the sha256 of a shard's bytes as they lie in `file`."""
    images = plan.shard_range(shard)
    return _range_hash(file, DATA_START + images.start * plan.image_bytes, len(images) * plan.image_bytes)


def labels_hash(file: Path, plan: CachePlan) -> str:
    """Return the sha256 of the labels as they lie in `file`."""
    return _range_hash(file, DATA_START + plan.rows_bytes, 8 * plan.num_images)


def differing(plan: CachePlan, other: CachePlan, *, ignore: Iterable[str] = ()) -> list[str]:
    """Return 'name: a instead of b' for every field of `plan` that differs from `other`."""
    mine, theirs = asdict(plan), asdict(other)
    return [
        f"{name}: {_short(mine[name])} instead of {_short(theirs[name])}"
        for name in mine
        if mine[name] != theirs[name] and name not in ignore
    ]


def _short(value: object) -> str:
    return value[:12] if isinstance(value, str) else str(value)


def _lane(plan: CachePlan) -> np.dtype:
    """Widest integers that divide a row: a gather moves bytes, whatever they mean."""
    size = plan.row_elements * DTYPES[plan.dtype].itemsize
    return np.dtype(next(f"<i{width}" for width in (8, 4, 2, 1) if size % width == 0))


def _range_hash(file: Path, start: int, length: int) -> str:
    digest = hashlib.sha256()
    with open(file, "rb", buffering=0) as stream:
        stream.seek(start)
        while length > 0 and (block := stream.read(min(length, 1 << 22))):
            digest.update(block)
            length -= len(block)
    return digest.hexdigest()
