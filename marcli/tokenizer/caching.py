"""Encode a data set once, by any number of processes, each on its own device.

The pending shards are dealt out in turn; nothing is exchanged while encoding. The main process waits for the records of
the others and writes the manifest, so a cache is complete or says that it is not.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from marcli.data.cache_writer import (
    begin,
    count_recorded,
    decode_shards,
    disk_errors,
    encode_shard,
    finish,
    read_plan,
    recorded_shards,
    write_shard,
)
from marcli.data.crop import BrokenImageError
from marcli.data.images import ImageSet
from marcli.data.latents import TOKENIZER, CachePlan
from marcli.data.source import check_whole, made_with
from marcli.errors import StoppedError
from marcli.recipe.schema import Recipe
from marcli.runtime.accelerator import Processes
from marcli.runtime.atomic import atomic_folder, remove_partials
from marcli.runtime.lock import exclusive
from marcli.runtime.progress import Progress
from marcli.runtime.stop import StopRequest
from marcli.tokenizer.base import Tokenizer
from marcli.tokenizer.build import build_tokenizer, prepare_tokenizer, save_tokenizer

DTYPE_NAMES = {torch.float16: "F16", torch.uint16: "U16", torch.uint8: "U8"}
SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True)
class CacheReport:
    """What was done.

    Attributes:
        manifest: the cache's
        encoded_shards: shards encoded by this call, over all processes
        seconds: of encoding
        tokenizer: the tokenizer that the cache keeps
    """

    manifest: dict
    encoded_shards: int
    seconds: float
    tokenizer: Tokenizer


def cache_latents(recipe: Recipe, images: ImageSet, *, folder: Path, processes: Processes) -> CacheReport | None:
    """Encode `images` into `folder`, going on where an earlier call ended; all processes call it.

    Returns the report on the main process, None elsewhere.

    Raises:
        UsageError: the folder holds a cache of another tokenizer, crop, scale or data set
        StoppedError: a signal asked to stop; finished shards are kept
        MarcliError: full disk, unreadable picture with data.on_broken=fail, weights that changed, a folder in use
    """
    if not processes.is_main:
        processes.wait()  # for the tokenizer and the plan
        tokenizer = build_tokenizer(recipe, folder=folder / TOKENIZER).to(processes.device)
        with StopRequest() as stop:
            _encode_share(recipe, images, tokenizer, folder=folder, processes=processes, stop=stop, look=lambda: None)
        return None
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / "lock"):
        remove_partials(folder)
        return _cache_as_main(recipe, images, folder=folder, processes=processes)


def _cache_as_main(recipe: Recipe, images: ImageSet, *, folder: Path, processes: Processes) -> CacheReport:
    tokenizer = settle_cache_tokenizer(recipe, images, folder=folder / TOKENIZER, device=processes.device)
    plan = make_plan(recipe, images, tokenizer, precision=processes.precision)
    pending = begin(folder, plan, images.labels)
    check_whole(recipe, [row for record in recorded_shards(folder, plan).values() for row in record["skipped"]], folder)
    processes.wait()
    started = time.monotonic()
    done = min((plan.num_shards - len(pending)) * plan.shard_images, plan.num_images)
    progress = Progress(title="caching", total=plan.num_images, unit="images", shown=True, done=done)
    with progress, StopRequest() as stop:

        def look() -> None:
            recorded = min(count_recorded(folder) * plan.shard_images, plan.num_images)
            progress.advance(max(0, recorded - progress.done))

        _encode_share(recipe, images, tokenizer, folder=folder, processes=processes, stop=stop, look=look)
        while count_recorded(folder) < plan.num_shards:
            if stop.requested:  # asked by a person, or by the launcher because another process failed
                raise StoppedError(_stopped(folder))
            time.sleep(SECONDS_BETWEEN_LOOKS)
            look()
    made = made_with(recipe) | {"scale": tokenizer.scale}
    return CacheReport(
        manifest=finish(folder, plan, made_with=made, data_path=recipe.data.path),
        encoded_shards=len(pending),
        seconds=time.monotonic() - started,
        tokenizer=tokenizer,
    )


def _encode_share(
    recipe: Recipe,
    images: ImageSet,
    tokenizer: Tokenizer,
    *,
    folder: Path,
    processes: Processes,
    stop: StopRequest,
    look: Callable[[], None],
) -> None:
    """Encode this process's share of the pending shards."""
    plan = read_plan(folder)
    recorded = recorded_shards(folder, plan)
    pending = [shard for shard in range(plan.num_shards) if shard not in recorded]
    processes.wait()  # nobody records a shard before everybody has seen the same ones
    mine = pending[processes.rank :: processes.world_size]

    @torch.inference_mode()
    def encode(pixels: Tensor) -> Tensor:
        if stop.requested:  # asked at every pass, since a shard can take a CPU minutes
            raise StoppedError(_stopped(folder))
        with processes.accelerator.autocast():
            return tokenizer.encode(pixels.to(processes.device))

    for shard, squares in decode_shards(images, plan, mine, threads=recipe.data.workers):
        chosen = plan.shard_range(shard)
        rows = encode_shard(squares, plan, encode=encode)
        skipped = [
            (index, images.name(index), str(square))
            for index, square in zip(chosen, squares, strict=True)
            if isinstance(square, BrokenImageError)
        ]
        write_shard(folder, plan, shard, rows, skipped)
        look()


def settle_cache_tokenizer(recipe: Recipe, images: ImageSet, *, folder: Path, device: torch.device) -> Tokenizer:
    """Return the tokenizer that a cache keeps in `folder`, making it the first time.

    One without a plan beside it was left by an attempt that failed early, perhaps on other images: it is made anew.
    """
    if not folder.exists() or read_plan(folder.parent) is None:
        made = prepare_tokenizer(recipe, images, device=device)
        with disk_errors(folder.parent), atomic_folder(folder) as partial:
            save_tokenizer(made, partial, recipe=recipe)
    return build_tokenizer(recipe, folder=folder).to(device)


def make_plan(recipe: Recipe, images: ImageSet, tokenizer: Tokenizer, *, precision: str) -> CachePlan:
    """Return what decides the bytes of the recipe's cache."""
    return CachePlan(
        images=images.fingerprint,
        image_size=recipe.data.image_size,
        channels=recipe.data.channels,
        tokenizer=tokenizer.fingerprint,
        scale=tokenizer.scale,
        num_images=len(images),
        flips=2 if recipe.data.horizontal_flip else 1,
        row_shape=(tokenizer.rows, tokenizer.shape.size, tokenizer.shape.size),
        dtype=DTYPE_NAMES[tokenizer.row_dtype],
        precision=precision,
    )


def _stopped(folder: Path) -> str:
    return f"stopped; finished shards are kept in {folder}, and the same command goes on from there"
