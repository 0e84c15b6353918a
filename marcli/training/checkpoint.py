"""Checkpoints that are complete or not there: written aside, renamed, and read only when every hash agrees.

    checkpoints/step-00001000/  model.safetensors  ema.safetensors  optimizer.safetensors  state.json  manifest.json

A flipped bit in a safetensors payload loads without a word, so every sha256 is checked before anything is used.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from marcli.errors import MarcliError
from marcli.pretrained.safe import check_names_and_shapes
from marcli.runtime.atomic import PARTIAL, atomic_folder, sha256_file
from marcli.training.ema import Ema

PREFIX = "step-"
MANIFEST = "manifest.json"
FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json")


@dataclass(frozen=True)
class Trained:
    """What training changes, and what a checkpoint therefore holds beside its state."""

    model: nn.Module
    ema: Ema
    optimizer: torch.optim.Optimizer


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints under `folder`, oldest first."""
    names = [entry.name.removeprefix(PREFIX) for entry in folder.glob(f"{PREFIX}*") if entry.is_dir()]
    return sorted(int(name) for name in names if name.isdigit())


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return where the checkpoint of `step` lies."""
    return folder / f"{PREFIX}{step:08d}"


def save_checkpoint(folder: Path, trained: Trained, state: dict, *, keep: int) -> Path:
    """Write the checkpoint of `state["step"]`; before and after, drop all but the newest `keep`.

    Raises MarcliError when it cannot be written; what was there before is then still there.
    """
    path = checkpoint_path(folder, state["step"])
    drop_all_but(keep, folder)  # a lowered `keep` makes room for this one
    try:
        with atomic_folder(path) as aside:
            save_file(to_cpu(trained.model.state_dict()), aside / "model.safetensors")
            save_file(to_cpu(trained.ema.state()), aside / "ema.safetensors")
            save_file(to_cpu(optimizer_tensors(trained)), aside / "optimizer.safetensors")
            (aside / "state.json").write_text(json.dumps(state, indent=1))
            manifest = {name: sha256_file(aside / name) for name in FILES}
            (aside / MANIFEST).write_text(json.dumps(manifest, indent=1))
    except (OSError, SafetensorError) as error:
        earlier = checkpoint_steps(folder)
        kept = f"the checkpoint of step {earlier[-1]} is intact" if earlier else "there is no earlier checkpoint"
        raise MarcliError(
            f"could not write the checkpoint of step {state['step']} to {folder}: {error}; {kept}. "
            "Free some space (or lower train.keep_checkpoints) and run the same command again to go on from there"
        ) from error
    drop_all_but(keep, folder)
    return path


def drop_all_but(keep: int, folder: Path) -> None:
    """Delete the checkpoints under `folder` except the newest `keep`."""
    for step in checkpoint_steps(folder)[:-keep]:
        remove_checkpoint(checkpoint_path(folder, step))


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint; killed half-way it no longer counts as one."""
    doomed = path.with_name(f".{path.name}{PARTIAL}old")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def damage(path: Path) -> str | None:
    """Return what is wrong with the checkpoint at `path`, or None when every file is what was written.

    Raises MarcliError when a file cannot be read now: that says nothing of what was written.
    """
    name = MANIFEST
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        expected = {name: manifest[name] for name in FILES}
        for name, digest in expected.items():
            if sha256_file(path / name) != digest:
                return f"{name} is not what was written (its sha256 differs)"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        raise MarcliError(
            f"{path / name} cannot be read now ({error.strerror}), which need not mean that it is damaged: "
            "check the disk and its rights, then run the same command again"
        ) from error
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} is not what was written"
    return None


def newest_checkpoint(folder: Path, announce: Callable[[str], None]) -> Path | None:
    """Return the newest sound checkpoint, None when there is none at all.

    Damaged ones are announced and set aside as `damaged-step-...`; raises MarcliError when only damaged ones are left.
    """
    broken = []
    for step in reversed(checkpoint_steps(folder)):
        path = checkpoint_path(folder, step)
        problem = damage(path)
        if problem is None:
            for bad in broken:
                aside = bad.with_name(f"damaged-{bad.name}")
                shutil.rmtree(aside, ignore_errors=True)
                bad.rename(aside)
            return path
        announce(f"The checkpoint {path} is damaged: {problem}; using the one before it.")
        broken.append(path)
    if broken:
        raise MarcliError(
            f"no sound checkpoint is left in {folder}: every one of {len(broken)} is damaged. "
            "Restore one from a copy, or train from the start in another folder (--out)"
        )
    return None


def load_checkpoint(path: Path, trained: Trained) -> dict:
    """Set weights, average and optimizer to those at `path` (verified before); return its state.

    Raises MarcliError for the checkpoint of another model (the run folder's recipe.yaml usually refuses it before).
    """
    device = str(trained.ema.averages[0].device)
    weights, averaged = (load_file(path / f"{name}.safetensors", device=device) for name in ("model", "ema"))
    set_weights(trained, weights, averaged, source=f"the checkpoint {path}")
    tensors = load_file(path / "optimizer.safetensors", device=device)
    for name, parameter in trained.model.named_parameters():
        prefix = f"{name}/"
        slots = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if slots:
            trained.optimizer.state[parameter] = slots
    return json.loads((path / "state.json").read_text())


def set_weights(trained: Trained, weights: dict[str, Tensor], averaged: dict[str, Tensor], *, source: str) -> None:
    """Set weights and average; raises MarcliError, before anything is set, for those of another model."""
    expected = {name: tuple(value.shape) for name, value in trained.model.state_dict().items()}
    check_names_and_shapes(expected, weights, source=source)
    trained.model.load_state_dict(weights)
    trained.ema.load(averaged)


def optimizer_tensors(trained: Trained) -> dict[str, Tensor]:
    """Return the optimizer's state as `<parameter>/<slot>`."""
    states = trained.optimizer.state
    return {
        f"{name}/{slot}": value
        for name, parameter in trained.model.named_parameters()
        for slot, value in states.get(parameter, {}).items()
    }


def to_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous copies in main memory, as safetensors wants them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
