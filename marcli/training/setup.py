"""From a recipe and a folder to everything the loop needs, whether the run is new or resumed."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from marcli.data.latents import TOKENIZER
from marcli.data.source import Source, open_source
from marcli.errors import UsageError
from marcli.model.build import build_model
from marcli.recipe.reader import recipe_text, write_recipe
from marcli.recipe.schema import Recipe
from marcli.runtime.accelerator import Processes
from marcli.runtime.atomic import atomic_file, atomic_folder
from marcli.runtime.rundir import RunDir
from marcli.runtime.seeding import item_seed
from marcli.tokenizer.base import Tokenizer
from marcli.tokenizer.build import build_tokenizer, prepare_tokenizer, save_tokenizer
from marcli.training.agreement import Agreement
from marcli.training.backward import Backward, build_backward
from marcli.training.blocks import checkpoint_activations, compile_blocks, compiling_pays
from marcli.training.checkpoint import Trained, load_checkpoint, newest_checkpoint
from marcli.training.ema import Ema
from marcli.training.export import exported_step, load_exported
from marcli.training.feed import Batch, Feed
from marcli.training.metrics_log import Window
from marcli.training.optim import build_optimizer
from marcli.training.resume import check_same_recipe, has_trained
from marcli.training.schedule import check_shares, total_steps, warmup_steps

SOURCES = {False: "images", True: "a latent cache"}


@dataclass(frozen=True)
class Job:
    """One training run, ready to go on from `first_step`."""

    recipe: Recipe
    run: RunDir
    processes: Processes
    agreement: Agreement
    source: Source
    tokenizer: Tokenizer
    model: nn.Module
    forward: nn.Module  # the model behind autocast and gradient averaging
    backward: Backward
    trained: Trained
    feed: Feed
    total: int
    warmup: int
    first_step: int
    open_window: list[dict]
    open_streak: int  # steps withheld in a row up to `first_step`

    def to_device(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return latents, labels and draws of `batch` on the device, without waiting for the copies."""
        device = self.processes.device
        images, noise = move(batch.images, device), None if batch.noise is None else move(batch.noise, device)
        with torch.no_grad():
            rows = images if self.source.is_latents else self.tokenizer.encode(images)
            latents = self.tokenizer.sample(rows, noise)
        return latents, move(batch.labels, device), {name: move(draw, device) for name, draw in batch.draws.items()}

    def state(self, step: int, window: Window, *, streak: int) -> dict:
        """Return what a checkpoint holds beside tensors."""
        return {
            "step": step,
            "window": window.state(),
            "streak": streak,
            "data_fingerprint": self.source.fingerprint,
            "is_latents": self.source.is_latents,
        }


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to `device`; from pinned memory, so that the host goes on, where there is such a thing."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def prepare(recipe: Recipe, run: RunDir, processes: Processes, announce: Callable[[str], None]) -> Job:
    """Build everything and resume from the newest sound checkpoint; the caller holds the run's lock.

    Raises UsageError when the run in that folder was started with another recipe or other images.
    """
    check_shares(recipe.train, processes.world_size)
    if processes.is_main:
        check_same_recipe(recipe, run)
        if not has_trained(run):  # an attempt that ended early measured another recipe, or images that changed since
            shutil.rmtree(run.tokenizer_path, ignore_errors=True)
        run.path.mkdir(parents=True, exist_ok=True)
        if not run.recipe_path.exists():  # another one is changed after all that may be refused
            keep_recipe(recipe, run.recipe_path)
    source = open_source(recipe, verify=processes.accelerator.is_local_main_process)
    tokenizer = settle_run_tokenizer(recipe, run, source, processes)
    announce(describe_source(source, tokenizer))
    announce_empty_classes(source, recipe.data.num_classes, announce)
    total = total_steps(recipe.train, num_images=source.num_images)

    torch.manual_seed(item_seed("weights", recipe.train.seed))
    model = build_model(recipe).to(processes.device).train()
    trained = Trained(
        model=model, ema=Ema(model, decay=recipe.train.ema_decay), optimizer=build_optimizer(model, recipe.train)
    )
    state = resume(run, trained, source, processes, announce) or ended(run, trained, processes, total)
    if state["step"] > total:
        raise UsageError(
            f"the run in {run.path} has already taken {state['step']} steps, more than the {total} asked for: ask for "
            f"at least {state['step']}, or train in another folder (--out)"
        )
    if processes.is_main:
        keep_recipe(recipe, run.recipe_path)
    if compiling_pays(recipe.train, processes.device, total):
        compile_blocks(model)
    if recipe.train.activation_checkpointing:
        checkpoint_activations(model)
    forward = processes.prepared(model)
    return Job(
        recipe=recipe,
        run=run,
        processes=processes,
        agreement=Agreement(processes),
        source=source,
        tokenizer=tokenizer,
        model=model,
        forward=forward,
        backward=build_backward(forward, model, recipe.train, processes, total=total),
        trained=trained,
        feed=Feed(
            recipe,
            source=source,
            tokenizer=tokenizer,
            model=model,
            rank=processes.rank,
            world_size=processes.world_size,
        ),
        total=total,
        warmup=warmup_steps(recipe.train, num_images=source.num_images),
        first_step=state["step"],
        open_window=state["window"],
        open_streak=state.get("streak", 0),  # checkpoints of before have none
    )


def keep_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe, completely or not at all, where it is not there already."""
    if not path.exists() or path.read_text(encoding="utf-8") != recipe_text(recipe):
        with atomic_file(path) as partial:
            write_recipe(recipe, partial)


def settle_run_tokenizer(recipe: Recipe, run: RunDir, source: Source, processes: Processes) -> Tokenizer:
    """Return the run's tokenizer, made once by the main process: the latent cache's, or a new one with its scale.

    Raises UsageError when the run has another tokenizer than the cache.
    """
    if processes.is_main and not run.tokenizer_path.exists():
        if source.is_latents:
            made = build_tokenizer(recipe, folder=source.cache.folder / TOKENIZER)
        else:
            made = prepare_tokenizer(recipe, source.images, device=processes.device)
        with atomic_folder(run.tokenizer_path) as aside:
            save_tokenizer(made, aside, recipe=recipe)
    processes.wait()
    tokenizer = build_tokenizer(recipe, folder=run.tokenizer_path)
    if source.is_latents and source.cache.plan.tokenizer != tokenizer.fingerprint:
        raise UsageError(
            f"the latents in {source.cache.folder} were made by another tokenizer than that of the run in {run.path}: "
            "set data.latents to the run's own cache, or train in another folder (--out)"
        )
    return tokenizer.to(processes.device)


def describe_source(source: Source, tokenizer: Tokenizer) -> str:
    """Say where latents come from, and whose weights made them."""
    note = f" ({tokenizer.weights_note})" if tokenizer.weights_note else ""
    if source.is_latents:
        return f"Training on {source.num_images:,} images as latents in {source.cache.folder}{note}."
    return f"Training on {source.num_images:,} images, encoded by {tokenizer.kind} on the fly{note}."


def announce_empty_classes(source: Source, num_classes: int, announce: Callable[[str], None]) -> None:
    """Say which classes have no image: sampling would take turns with them all the same."""
    empty = np.setdiff1d(np.arange(num_classes), source.labels)
    if len(empty):
        listed = ", ".join(map(str, empty[:5])) + (", ..." if len(empty) > 5 else "")
        announce(
            f"{len(empty)} of {num_classes} classes have no image and will not be learned ({listed}): "
            "check data.num_classes and the folders"
        )


def resume(
    run: RunDir, trained: Trained, source: Source, processes: Processes, announce: Callable[[str], None]
) -> dict | None:
    """Load the newest sound checkpoint that the main process finds; return its state, or None where there is none."""
    path = processes.on_main(lambda: newest_checkpoint(run.checkpoints, announce))
    if path is None:
        return None
    state = load_checkpoint(path, trained)
    if state["data_fingerprint"] != source.fingerprint:
        before, now = (SOURCES[latents] for latents in (state["is_latents"], source.is_latents))
        made_since = source.is_latents and not state["is_latents"]
        back = f"move {source.cache.folder} away" if made_since else "give it back (data.path, data.latents)"
        raise UsageError(
            f"the run in {run.path} was trained on other data ({before}) than there is now ({now}): "
            f"{back}, or train in another folder (--out)"
        )
    announce(f"Resuming {run.path} after step {state['step']}.")
    return state


def ended(run: RunDir, trained: Trained, processes: Processes, total: int) -> dict:
    """Load the weights of a run whose checkpoints were deleted after its end; return its state, or that of a new run.

    Raises UsageError where it was to have another length, for which the optimizer's state is needed.
    """
    step = processes.on_main(lambda: exported_step(run.weights_path))
    if step is None:
        return {"step": 0, "window": []}
    if step != total:
        raise UsageError(
            f"the run in {run.path} has taken {step} steps and cannot go on to {total}, for its checkpoints are gone: "
            f"give {run.checkpoints} back, or train in another folder (--out)"
        )
    load_exported(run.weights_path, trained)
    return {"step": step, "window": []}
