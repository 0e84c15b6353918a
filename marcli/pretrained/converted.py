"""Foreign files, converted once to safetensors in our names and kept in the user's cache.

A conversion is keyed by the sha256 of its source and holds every set of weights the source has, as `raw.<name>` and
`ema.<name>`. Both hashes are computed on each use, so neither a changed source nor a damaged conversion is ever used
unseen.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from marcli.errors import MarcliError
from marcli.pretrained import dit, official_mar
from marcli.pretrained.safe import check_is_file, read_safetensors_file, read_torch_file
from marcli.runtime.atomic import atomic_folder, sha256_file
from marcli.runtime.user_cache import user_cache

log = logging.getLogger("marcli")

VERSION = 2
UNGUIDED = {name: official_mar.UNGUIDED for name in official_mar.SHIPPED}  # overrides for sampling without guidance
RECORD = "record.json"


@dataclass(frozen=True)
class Converted:
    """A converted file, the shipped recipe it belongs to, and the overrides that make the recipe the file's own."""

    weights: Path
    recipe: str
    overrides: tuple[str, ...]
    sets: tuple[str, ...]
    source_sha256: str
    weights_sha256: str


def convert_once(source: Path) -> Converted:
    """Return the conversion of a published file, made now where the cache has none that is whole.

    Raises MarcliError when the file is of no known layout, would run code, is cut short, has a tensor too few, too
    many or of another shape, or holds values that are not finite.
    """
    from filelock import FileLock  # a tenth of a second that no run of one's own needs

    check_is_file(source)
    sha256 = sha256_file(source)
    folder = user_cache() / "converted" / f"{sha256}-{VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # processes of one command ask at the same time
        return kept_conversion(folder) or write_conversion(source, sha256, folder)


def write_conversion(source: Path, sha256: str, folder: Path) -> Converted:
    """Convert `source` into `folder`, which appears complete or not at all."""
    log.warning("Converting %s to safetensors, once, in %s.", source, folder)
    tensors, recipe, overrides = convert(source)
    check_finite(tensors, source=str(source))
    with atomic_folder(folder) as aside:
        save_file(separate(tensors), aside / "weights.safetensors", metadata={"source sha256": sha256})
        converted = Converted(
            weights=folder / "weights.safetensors",
            recipe=recipe,
            overrides=overrides,
            sets=tuple(sorted({name.split(".")[0] for name in tensors})),
            source_sha256=sha256,
            weights_sha256=sha256_file(aside / "weights.safetensors"),
        )
        (aside / RECORD).write_text(json.dumps({**asdict(converted), "weights": "weights.safetensors"}, indent=1))
    return converted


def kept_conversion(folder: Path) -> Converted | None:
    """Return the conversion in `folder` when it is there and its bytes are those that were written."""
    try:
        record = json.loads((folder / RECORD).read_text())
        sequences = {name: tuple(record[name]) for name in ("overrides", "sets")}
        kept = Converted(**{**record, **sequences, "weights": folder / record["weights"]})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if not kept.weights.is_file() or sha256_file(kept.weights) != kept.weights_sha256:
        log.warning("%s has changed since it was written, so it is made anew.", kept.weights)
        return None
    return kept


def convert(source: Path) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """Return the tensors of a published file in our names, its shipped recipe and the overrides for it."""
    content = read_safetensors_file(source)[0] if source.suffix == ".safetensors" else read_torch_file(source)
    sets = official_mar.weights_of(content)
    names = {"raw": "model", "ema": official_mar.averaged_name(content)} if "model" in content else {"raw": "the file"}
    named = {kind: f"{source} ({names[kind]})" for kind in sets}
    for tensors in sets.values():
        if official_mar.is_official_mar(tensors):
            return convert_mar(sets, named, content.get("args"))
        if dit.is_published_dit(tensors):
            return convert_dit(sets, named, is_published="model" not in content)
    found = ", ".join(list(map(str, content))[:4])
    raise MarcliError(
        f"{source} has none of the known layouts: it is neither a MAR nor a DiT (its first entries: {found}). "
        "The weights of an autoencoder belong to tokenizer.weights."
    )


def convert_mar(
    sets: Mapping[str, Mapping], named: Mapping[str, str], args: object
) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """Return the sets of a file of MAR's authors, or of one converted from it, in our names."""
    converted: dict[str, Tensor] = {}
    for kind, tensors in sets.items():
        architecture = official_mar.recognise(tensors, source=named[kind])
        converted |= {f"{kind}.{official_mar.our_name(name)}": value for name, value in tensors.items()}
    recipe, overrides = official_mar.recipe_of(architecture, args)
    return converted, recipe, overrides


def convert_dit(
    sets: Mapping[str, Mapping], named: Mapping[str, str], *, is_published: bool
) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """Return the sets of a DiT in our names; the one set of a published file is the average."""
    converted: dict[str, Tensor] = {}
    for kind, tensors in sets.items():
        ours, recipe, overrides = dit.convert(tensors, source=named[kind])
        converted |= {f"{'ema' if is_published else kind}.{name}": value for name, value in ours.items()}
    return converted, recipe, overrides


def separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the same values, each filling a storage of its own, as safetensors wants them."""
    seen: set[int] = set()
    separated = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        fills = tensor.is_contiguous() and storage.nbytes() == tensor.numel() * tensor.element_size()
        if not fills or storage.data_ptr() in seen:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(storage.data_ptr())
        separated[name] = tensor.detach()
    return separated


def check_finite(tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Raise MarcliError naming the tensors that hold NaN or infinity."""
    broken = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise MarcliError(f"{source} holds values that are not finite, in {', '.join(broken[:20])}.")
