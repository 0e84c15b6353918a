"""Samples per second out of a latent cache through the training loader, beside the published one-npz-per-image way.

    python tests/benchmarks/cache_read.py

Rows are 2 flips x 32 x 16 x 16 float16 (KL-16 moments of a 256-pixel image). A batch is 256 random rows, one flip
drawn per row, as one contiguous tensor. Every way is warmed up by one pass, then timed in turns; medians are printed,
and the last line is JSON. Run it on a quiet machine: the load average is part of the result.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import torch

from marcli.data.ahead import ahead
from marcli.data.batches import batch_flips, batch_indices
from marcli.data.cache_writer import begin, finish, write_shard
from marcli.data.latents import CachePlan, LatentCache
from marcli.data.source import LatentSource

ROW = (32, 16, 16)


def write_cache(folder: Path, num_images: int) -> LatentSource:
    """Write random rows with the product's own writer and open them as training does."""
    plan = CachePlan(
        images="benchmark", image_size=256, channels=3, tokenizer="benchmark", scale=0.2325, num_images=num_images,
        flips=2, row_shape=ROW, dtype="F16", precision="fp32",
    )  # fmt: skip
    for shard in begin(folder, plan, np.arange(num_images) % 1000):
        write_shard(folder, plan, shard, random_rows(len(plan.shard_range(shard)), seed=shard), [])
    finish(folder, plan, made_with={}, data_path="benchmark")
    return LatentSource(LatentCache(folder, verify=True))


def random_rows(count: int, *, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 2, *ROW), dtype=np.float32).astype(np.float16)


def write_npz(folder: Path, num_images: int) -> None:
    """Write the published layout: one file per image with fp32 `moments` and `moments_flip`."""
    folder.mkdir()
    for start in range(0, num_images, 256):
        for offset, row in enumerate(random_rows(min(256, num_images - start), seed=start).astype(np.float32)):
            np.savez(folder / f"{start + offset}.npz", moments=row[0], moments_flip=row[1])


def requests(num_images: int, batch_size: int, count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices and flips of each batch."""
    for step in range(count):
        yield (
            batch_indices(num_images=num_images, batch_size=batch_size, seed=seed, step=step),
            batch_flips(batch_size=batch_size, seed=seed, step=step, horizontal_flip=True),
        )


def read_cache(source: LatentSource, batch_size: int, count: int, threads: int) -> int:
    read = 0
    asked = requests(source.num_images, batch_size, count, 0)
    for rows, _ in ahead(lambda request: source.fetch(*request), asked, threads=threads):
        assert rows.is_contiguous()
        read += len(rows)
    return read


def read_npz(folder: Path, num_images: int, batch_size: int, count: int) -> int:
    """As the published loader reads: open the image's file, take one of the two arrays, stack."""
    read = 0
    for indices, flips in requests(num_images, batch_size, count, 0):
        rows = []
        for index, flip in zip(indices, flips, strict=True):
            content = np.load(folder / f"{index}.npz")
            rows.append(torch.from_numpy(content["moments_flip"] if flip else content["moments"]))
        read += len(torch.stack(rows))
    return read


def write_arrow(folder: Path, num_images: int) -> datasets.Dataset:
    """The alternative in the same stack: an Arrow column of fixed-size binary."""
    size = 2 * int(np.prod(ROW)) * 2
    features = datasets.Features({"row": datasets.Value(f"fixed_size_binary[{size}]")})

    def rows() -> Iterator[dict[str, bytes]]:
        for start in range(0, num_images, 256):
            for row in random_rows(min(256, num_images - start), seed=start):
                yield {"row": row.tobytes()}

    made = datasets.Dataset.from_generator(rows, features=features, cache_dir=str(folder))
    return made.with_format("arrow")


def read_arrow(made: datasets.Dataset, batch_size: int, count: int) -> int:
    read = 0
    for indices, flips in requests(len(made), batch_size, count, 0):
        column = made[indices.tolist()]["row"].combine_chunks()
        both = np.frombuffer(column.buffers()[1], dtype=np.float16).reshape(batch_size, 2, *ROW)
        read += len(torch.from_numpy(both[np.arange(batch_size), flips.astype(int)]))
    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_480)
    parser.add_argument("--npz-images", type=int, default=2_048)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--batches", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        folder, size = Path(place), options.batch_size
        source = write_cache(folder / "cache", options.images)
        write_npz(folder / "npz", options.npz_images)
        arrow = write_arrow(folder / "arrow", options.images)
        ways: dict[str, Callable[[], int]] = {
            f"cache, loader with {threads} threads": lambda threads=threads: read_cache(
                source, size, options.batches, threads
            )
            for threads in (0, 1, 2)
        }
        ways["arrow fixed_size_binary"] = lambda: read_arrow(arrow, size, options.batches // 8)
        ways["npz per image (published)"] = lambda: read_npz(folder / "npz", options.npz_images, size, 8)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(options.repeats + 1):
            for name, read in ways.items():
                started = time.perf_counter()
                count = read()
                if repeat:  # the first pass warms up
                    rates[name].append(count / (time.perf_counter() - started))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(f"{name:32} {medians[name]:12,.0f} samples/s   ({min(values):,.0f} .. {max(values):,.0f})")
    load = os.getloadavg()[0]
    print(f"{options.images:,} images, batches of {size}, {os.cpu_count()} cores, load average {load:.1f}")
    print(json.dumps({"samples_per_second": medians, "load_average": load, "images": options.images}))


if __name__ == "__main__":
    main()
