"""What the user names, as a system ready to sample; only `sample.*` can be overridden."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from marcli.errors import MarcliError
from marcli.model.build import build_model
from marcli.pretrained.hub import HUB_PREFIX, fetch_shared, must_be_downloaded
from marcli.pretrained.published import MODELS
from marcli.pretrained.safe import assign_strictly
from marcli.recipe.reader import read_recipe
from marcli.recipe.schema import Recipe, acts
from marcli.runtime.atomic import sha256_file
from marcli.runtime.seeding import item_seed
from marcli.runtime.skeleton import NothingDrawn, skeletons
from marcli.sampling.find import Found, default_spec, find, published_recipe
from marcli.sampling.naming import Weights, check_overrides
from marcli.sampling.system import Named, System
from marcli.sampling.weights import read_set, sets_of
from marcli.tokenizer.base import Tokenizer
from marcli.tokenizer.build import build_tokenizer

log = logging.getLogger("marcli")


def load_system(spec: str | None, *, weights: Weights, overrides: Sequence[str]) -> System:
    """Return the system that `spec` names, on the CPU in float32, in evaluation mode.

    Args:
        spec: a run's folder, a weights file (a run's `.safetensors`, or a published file), a published name,
            `hub:user/name[@revision]`, or None for the newest run under runs/, else mar-l
        weights: the averaged or the raw ones; a file that holds one set gives that one, and the note says so
        overrides: `sample.key=value`

    Raises:
        UsageError: `spec` names nothing, or an override is not of `sample`
        MarcliError: a part is missing, damaged, does not fit, or was made with another tokenizer
    """
    check_overrides(overrides)
    found = find(spec or default_spec(), overrides)
    say_idle(found.recipe, overrides)
    chosen, note = choose(weights, sets_of(found.weights), found)
    tokenizer = ready_tokenizer(found)
    model = filled_model(found.recipe, read_set(found.weights, chosen), source=str(found.weights))
    notes = [each for each in (note, found.note, tokenizer.weights_note) if each]
    return System(
        name=found.name,
        recipe=found.recipe,
        model=model,
        tokenizer=tokenizer,
        weights=chosen,
        weights_sha256=found.source_sha256 or sha256_file(found.weights),
        note="; ".join(notes) or None,
    )


def name_system(spec: str | None, *, weights: Weights, overrides: Sequence[str]) -> Named:
    """Return what `load_system` would load, without loading it; of what is not here only a recipe is downloaded.

    Raises as `load_system` does for what can be known beforehand.
    """
    check_overrides(overrides)
    spec = spec or default_spec()
    if spec in MODELS and must_be_downloaded(spec):
        model = MODELS[spec]
        log.warning("%s would be downloaded from %s.", model.file.name, model.file.repo)
        recipe = published_recipe(model.recipe, (), overrides)
        named = Named(spec, recipe, weights if weights in model.sets else model.sets[0])
    elif spec.startswith(HUB_PREFIX):
        folder = fetch_shared(spec.removeprefix(HUB_PREFIX), whole=False)
        named = Named(spec, read_recipe(folder / "recipe.yaml", overrides), weights)
    else:
        found = find(spec, overrides)
        named = Named(found.name, found.recipe, choose(weights, sets_of(found.weights), found)[0])
    say_idle(named.recipe, overrides)
    return named


def choose(wanted: Weights, held: tuple[str, ...], found: Found) -> tuple[str, str | None]:
    """Return the set of weights to use, and what to say when it is not the wanted one."""
    if not held:
        raise MarcliError(f"{found.weights} holds neither ema.* nor raw.* weights.")
    if wanted in held:
        return wanted, None
    note = f"{found.name} holds only its {held[0]} weights, so those are used"
    log.warning("%s.", note)
    return held[0], note


def say_idle(recipe: Recipe, overrides: Sequence[str]) -> None:
    """Warn of settings that were asked for and that act on nothing in this model."""
    for override in overrides:
        if not acts(recipe, override.partition("=")[0].removeprefix("sample.")):
            log.warning("%s changes nothing: the model of %s has no part that it acts on.", override, recipe.name)


def filled_model(recipe: Recipe, tensors: dict[str, Tensor], *, source: str) -> nn.Module:
    """Return the recipe's model with these weights; parameters are never drawn at random first."""
    with skeletons():
        model = build_model(recipe)
    if len(list(model.buffers())) > len(set(model.state_dict()) - set(dict(model.named_parameters()))):
        with NothingDrawn():
            model = build_model(recipe)  # it computes buffers that no file holds
    assign_strictly(model, tensors, source=source)
    return model.eval().requires_grad_(False)


def ready_tokenizer(found: Found) -> Tokenizer:
    """Return the tokenizer the weights were trained over; a folder with another one is refused."""
    tokenizer = build_tokenizer(found.recipe, folder=found.tokenizer)
    if tokenizer.scale is None:
        raise MarcliError(
            f"{found.name} was trained over latents of a measured scale, which is not known here: put the run's "
            "tokenizer folder beside the weights."
        )
    return tokenizer


def random_system(recipe: Recipe, *, tokenizer: Tokenizer, seed: int) -> System:
    """Return a system with fresh model weights of `seed`, for measuring speed; its note says so."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(item_seed("random weights", seed))
        model = build_model(recipe).eval().requires_grad_(False)
    return System(
        name=recipe.name,
        recipe=recipe,
        model=model,
        tokenizer=tokenizer,
        weights="raw",
        weights_sha256=None,
        note="random weights",
    )
