"""Where a training step's images come from: pictures decoded on the fly, or a cache of latents.

A source answers (which images, which of them mirrored) with what the tokenizer needs: pictures for `encode`, cached
rows for `sample`.
"""

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from marcli.data.images import ImageSet, open_images
from marcli.data.latents import MANIFEST, LatentCache
from marcli.errors import MarcliError, UsageError
from marcli.recipe.schema import Recipe
from marcli.runtime.home import at_home


class Source(Protocol):
    """Labelled training examples by index."""

    num_images: int
    labels: np.ndarray  # int64 [num_images]
    is_latents: bool  # payloads are cached rows for `Tokenizer.sample`, not images for `Tokenizer.encode`
    fingerprint: str

    def fetch(self, indices: np.ndarray, flips: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return payload and int64 labels of `indices`, mirrored where `flips`; safe to call from threads."""


class ImageSource:
    """Pictures, decoded when asked for."""

    is_latents = False

    def __init__(self, images: ImageSet) -> None:
        self.images = images
        self.num_images = len(images)
        self.labels = images.labels
        self.fingerprint = images.fingerprint

    def fetch(self, indices: np.ndarray, flips: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return uint8 images [b, c, s, s], mirrored left to right where `flips`, and labels."""
        pixels, labels = self.images.fetch(indices)
        if flips.any():
            mirrored = torch.from_numpy(flips)
            pixels[mirrored] = pixels[mirrored].flip(-1)
        return pixels, labels


class LatentSource:
    """Rows of a latent cache."""

    is_latents = True

    def __init__(self, cache: LatentCache) -> None:
        self.cache = cache
        self.num_images = cache.num_images
        self.labels = cache.labels
        self.fingerprint = cache.hash
        self._labels = torch.from_numpy(cache.labels)

    def fetch(self, indices: np.ndarray, flips: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return cached rows [b, r, s, s], the mirrored ones where `flips`, and labels."""
        return self.cache.rows(indices, flips), self._labels[torch.from_numpy(indices)]


def cache_folder(recipe: Recipe) -> Path:
    """Where the recipe's latent cache lies or would lie."""
    return at_home(recipe.data.latents) if recipe.data.latents else Path("cache") / recipe.name


def open_source(recipe: Recipe, *, verify: bool) -> ImageSource | LatentSource:
    """Return the recipe's latent cache where there is one, else its images.

    A cache is used when `data.latents` names it, or when `cache/<recipe name>` is complete and of the recipe's images.
    `verify` reads the whole cache once, lists the images and checks both; one process per machine is enough.

    Raises:
        UsageError: the cache is of another tokenizer, crop, scale, set of classes or images than the recipe's
        MarcliError: the cache named is missing, unfinished or damaged, or lacks pictures with data.on_broken=fail
    """
    folder = cache_folder(recipe)
    if recipe.data.latents is None and not (folder / MANIFEST).exists():
        return ImageSource(open_images(recipe.data))
    cache = LatentCache(folder, verify=verify)
    check_fits(recipe, cache)
    if verify and recipe.data.latents is None:
        check_images(recipe, cache)
    check_classes(recipe, cache)
    check_whole(recipe, cache.manifest["skipped"], folder)
    return LatentSource(cache)


def check_fits(recipe: Recipe, cache: LatentCache) -> None:
    """Raise UsageError naming what the cache has and the recipe asks for."""
    made = cache.manifest["made_with"]
    wanted = made_with(recipe)
    if wanted["scale"] is None:
        wanted["scale"] = made["scale"]
    if wanted["flips"] < made["flips"]:
        wanted["flips"] = made["flips"]  # mirrored rows need not be used
    wrong = [
        f"{key}: {_shown(made[key])}, the recipe {_shown(wanted[key])}" for key in wanted if made[key] != wanted[key]
    ]
    if wrong:
        raise UsageError(
            f"the latent cache {cache.folder} does not fit the recipe ({'; '.join(wrong)}): "
            "give another folder with data.latents, and run marcli cache-latents RECIPE"
        )


def check_classes(recipe: Recipe, cache: LatentCache) -> None:
    """Raise UsageError when the recipe has fewer classes than the cache."""
    if cache.labels.max() >= recipe.data.num_classes:
        raise UsageError(
            f"the latent cache {cache.folder} has label {cache.labels.max()}, outside 0.."
            f"{recipe.data.num_classes - 1}: set data.num_classes={cache.labels.max() + 1}"
        )


def check_whole(recipe: Recipe, skipped: list, folder: Path) -> None:
    """Raise MarcliError where the cache in `folder` `skipped` pictures (index, name, reason) that must not be."""
    if skipped and recipe.data.on_broken == "fail":
        _, name, reason = skipped[0]
        raise MarcliError(
            f"{name} was left out of the latent cache {folder} ({reason}), and data.on_broken is fail: repair or "
            "remove that picture and cache anew in another folder (data.latents), or set data.on_broken=skip"
        )


def check_images(recipe: Recipe, cache: LatentCache) -> None:
    """Raise UsageError when a cache that was found by name alone is of other images than those at `data.path`.

    The listing is compared and nothing is decoded; images that are not on this machine are compared by their name.
    """
    data, cached = recipe.data, cache.manifest["data_path"]
    if data.path == "digits" or at_home(data.path).exists():
        same = open_images(data).fingerprint == cache.plan.images
    else:
        same = data.path == cached
    if not same:
        changed = "" if data.path != cached else ", whose files have changed since"
        raise UsageError(
            f"the latent cache {cache.folder} was made of the images in {cached!r}{changed}, and data.path is "
            f"{data.path!r}: delete it and run marcli cache-latents RECIPE again, or set data.latents={cache.folder} "
            "to train on it anyway"
        )


def made_with(recipe: Recipe) -> dict[str, object]:
    """Return what a cache must have been made with to serve `recipe`; a scale of None means any."""
    return {
        "tokenizer": recipe.tokenizer.model_dump(exclude={"scale", "weights"}),
        "latent": recipe.latent.model_dump(),
        "image_size": recipe.data.image_size,
        "channels": recipe.data.channels,
        "flips": 2 if recipe.data.horizontal_flip else 1,
        "scale": recipe.tokenizer.scale,
    }


def _shown(value: object) -> str:
    return " ".join(str(item) for item in value.values() if item is not None) if isinstance(value, dict) else str(value)
