"""The one place where `tokenizer:` becomes a tokenizer, from a recipe or from the folder a run or cache keeps.

Order of work for a new run: `prepare_tokenizer` (build, learn the codebook, measure the scale) on one process, then
`save_tokenizer`; every other process and every later command builds from that folder.
"""

import json
from pathlib import Path
from typing import assert_never

import torch

from marcli.data.images import ImageSet, evenly_spread
from marcli.errors import MarcliError, UsageError
from marcli.pretrained.hub import find_tokenizer_weights
from marcli.pretrained.published import TOKENIZERS
from marcli.recipe import tokenizer as kinds
from marcli.recipe.data import Data
from marcli.recipe.schema import Recipe
from marcli.runtime.home import at_home
from marcli.tokenizer.architecture import weights_note
from marcli.tokenizer.base import Tokenizer
from marcli.tokenizer.moments import LatentMoments

SCALE_IMAGES = 10_000  # measure the scale on at most so many images, evenly spread
FILE = "tokenizer.json"
RECORDED = {"tokenizer", "latent", "scale", "fingerprint", "weights"}
PUBLISHED_SCALES = {"kl16": 0.2325, "kl8": 0.18215, "consistency": 0.18215}  # MAR's, and Stable Diffusion's twice


def prepare_tokenizer(recipe: Recipe, images: ImageSet, *, device: torch.device) -> Tokenizer:
    """Build the recipe's tokenizer, learn what it has to learn, and measure its scale unless it is given."""
    tokenizer = new_tokenizer(recipe.tokenizer, recipe.data, images, seed=recipe.train.seed, device=device)
    if tokenizer.scale is None:
        tokenizer.scale = measure_scale(tokenizer, images)
    return tokenizer


def new_tokenizer(
    section: kinds.Tokenizer, data: Data, images: ImageSet, *, seed: int, device: torch.device
) -> Tokenizer:
    """Build a tokenizer and learn its codebook, if it has one; the scale is None unless it is given or published."""
    tokenizer = _build(section, data, saved=None, weights=getattr(section, "weights", None))
    tokenizer.fit(images, seed=seed)
    return tokenizer.to(device)


def build_tokenizer(recipe: Recipe, *, folder: Path | None) -> Tokenizer:
    """Return the recipe's tokenizer on the CPU, in evaluation mode and without gradients.

    Args:
        recipe: its `tokenizer` section and image geometry are used
        folder: a saved tokenizer (`save_tokenizer`), whose weights and scale are taken; None starts from the recipe,
            so the scale may still be None and a codebook unlearned

    Raises:
        UsageError: the folder holds another tokenizer than the recipe's
        MarcliError: weights are missing, do not fit or changed since the folder was written
    """
    if folder is None:
        return _build(recipe.tokenizer, recipe.data, saved=None, weights=getattr(recipe.tokenizer, "weights", None))
    record = read_record(folder)
    wanted = recipe.tokenizer.model_dump(exclude={"scale", "weights"})
    if record["tokenizer"] != wanted or record["latent"] != recipe.latent.model_dump():
        raise UsageError(
            f"{folder} was made with tokenizer {describe(record['tokenizer'])} and latents "
            f"{describe(record['latent'])}, but the recipe asks for {describe(wanted)} and "
            f"{describe(recipe.latent.model_dump())}: use that tokenizer, or another folder"
        )
    if recipe.tokenizer.scale is not None and recipe.tokenizer.scale != record["scale"]:
        raise UsageError(
            f"{folder} was made with scale {record['scale']}, but tokenizer.scale is {recipe.tokenizer.scale}: "
            "leave tokenizer.scale out, or use another folder"
        )
    weights = weights_to_load(folder, record["weights"], named=getattr(recipe.tokenizer, "weights", None))
    tokenizer = _build(recipe.tokenizer, recipe.data, saved=folder, weights=weights)
    tokenizer.scale = record["scale"]
    if tokenizer.fingerprint != record["fingerprint"]:
        raise MarcliError(
            f"the weights of tokenizer {tokenizer.kind!r} are not those that {folder} was made with "
            f"(fingerprint {tokenizer.fingerprint[:12]}, then {record['fingerprint'][:12]}): "
            "put the old weights back, or start anew in another folder"
        )
    return tokenizer


def weights_to_load(folder: Path, kept: str | None, *, named: str | None) -> str | None:
    """Return the weights of the tokenizer in `folder`, whose record names `kept`; None for published or learned ones.

    Those that the recipe has `named` come first where they are there, so that other ones than `kept` are noticed.
    """
    is_path = kept is not None and Path(kept).is_absolute()
    if kept is not None and not is_path and (folder / kept).exists():  # a shared run brings its autoencoder along
        return str(folder / kept)
    if named is None or (is_path and not at_home(named).exists()):
        return kept
    return named


def _build(section: kinds.Tokenizer, data: Data, *, saved: Path | None, weights: str | None) -> Tokenizer:
    """Import and build only the kind that is asked for; diffusers alone takes seconds."""
    shape = kinds.latent_shape(section, data.image_size, data.channels)
    tokenizer = _small(section, shape, data.channels) or _autoencoder(section, shape, weights)
    if saved is not None:
        tokenizer.load_weights(saved)
    return tokenizer.eval().requires_grad_(False)


def _small(section: kinds.Tokenizer, shape: kinds.LatentShape, channels: int) -> Tokenizer | None:
    """Build a tokenizer that fetches no weights; None for other kinds."""
    match section:
        case kinds.PixelsTokenizer():
            from marcli.tokenizer.pixels import PixelsTokenizer

            return PixelsTokenizer(shape, scale=section.scale)
        case kinds.KMeansTokenizer():
            from marcli.tokenizer.kmeans import KMeansTokenizer

            return KMeansTokenizer(shape, scale=section.scale, channels=channels, codebook_size=section.codebook_size)
    return None


def _autoencoder(section: kinds.Tokenizer, shape: kinds.LatentShape, weights: str | None) -> Tokenizer:
    """Build a tokenizer around a network of diffusers, from the file, folder or hub id `weights`."""
    path = find_tokenizer_weights(section.kind, weights)
    scale = section.scale
    match section:
        case kinds.KLTokenizer():
            from marcli.tokenizer import kl

            network = kl.load_kl(path, architecture=kl.ARCHITECTURES[section.kind])
            tokenizer = kl.KLTokenizer(shape, kind=section.kind, scale=scale, network=network)
        case kinds.VQTokenizer():
            from marcli.tokenizer import vq

            network = vq.load_vq(path, channels=section.channels, codebook_size=section.codebook_size, widths=vq.WIDTHS)
            tokenizer = vq.VQTokenizer(shape, scale=scale, network=network)
        case kinds.ConsistencyTokenizer():
            from marcli.tokenizer.architecture import load_diffusers
            from marcli.tokenizer.consistency import ConsistencyDecoderVAE, ConsistencyTokenizer

            network = load_diffusers(path, network_class=ConsistencyDecoderVAE)
            tokenizer = ConsistencyTokenizer(shape, scale=scale, network=network)
        case kinds.AutoencoderTokenizer():
            from marcli.tokenizer.autoencoder import AutoencoderTokenizer, load_autoencoder

            tokenizer = AutoencoderTokenizer(shape, scale=scale, network=load_autoencoder(path), source=str(path))
        case _:
            assert_never(section)
    published = TOKENIZERS.get(section.kind)
    known = frozenset(file.sha256 for file in published.files if file.sha256) if published else frozenset()
    tokenizer.weights_note = weights_note(path, known)
    if tokenizer.scale is None and (weights is None or tokenizer.weights_note is None):
        tokenizer.scale = PUBLISHED_SCALES.get(section.kind)
    here = at_home(weights) if weights else None
    tokenizer.weights_source = str(here.resolve()) if here and here.exists() else weights
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, *, recipe: Recipe) -> None:
    """Write `tokenizer.json` (settings, scale, fingerprint, where the weights came from) and learned weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_weights(folder)
    record = {
        "tokenizer": recipe.tokenizer.model_dump(exclude={"scale", "weights"}),
        "latent": recipe.latent.model_dump(),
        "scale": tokenizer.scale,
        "fingerprint": tokenizer.fingerprint,
        "weights": tokenizer.weights_source,
        "weights_note": tokenizer.weights_note,
    }
    (folder / FILE).write_text(json.dumps(record, indent=2) + "\n")


def read_record(folder: Path) -> dict:
    """Return what `save_tokenizer` wrote in `folder`; raises MarcliError."""
    try:
        record = json.loads((folder / FILE).read_text())
        whole = record.keys() >= RECORDED and all(isinstance(record[name], dict) for name in ("tokenizer", "latent"))
    except OSError as error:
        raise MarcliError(f"{folder / FILE} cannot be read ({error}): the tokenizer's record is missing") from None
    except (ValueError, AttributeError):
        whole = False
    if not whole:
        raise MarcliError(f"{folder / FILE} is not what was written: give it back, or start anew in another folder")
    return record


def describe(settings: dict) -> str:
    """One short line of settings for a message."""
    return ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None)


@torch.inference_mode()
def measure_scale(tokenizer: Tokenizer, images: ImageSet) -> float:
    """Return 1/std of the unscaled latents over up to 10,000 evenly spread images, posterior noise included.

    The mean is not removed from latents, but it is from their spread, as where MAR's 0.2325 comes from.
    """
    moments = LatentMoments(tokenizer.shape.channels)
    before, tokenizer.scale = tokenizer.scale, 1.0
    device = next((buffer.device for buffer in tokenizer.state_dict().values()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for pixels, _ in images.batches(64, indices=evenly_spread(len(images), SCALE_IMAGES)):
        shape = (len(pixels), tokenizer.shape.channels, tokenizer.shape.size, tokenizer.shape.size)
        noise = torch.randn(shape, generator=generator).to(device) if tokenizer.has_posterior else None
        moments.add(tokenizer.sample(tokenizer.encode(pixels.to(device)), noise))
    tokenizer.scale = before
    if not moments.std > 0:
        raise MarcliError(
            f"the latents of tokenizer {tokenizer.kind!r} do not vary over the images: set tokenizer.scale"
        )
    return float(f"{1 / moments.std:.6g}")  # six digits do not depend on the machine
