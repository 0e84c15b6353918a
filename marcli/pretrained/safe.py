"""Foreign weight files, read without running anything in them, and put into a module without a gap.

A pickle is read by torch's restricted unpickler, which knows tensors and plain containers, plus `argparse.Namespace`
because published files carry their command line in one. Files of latent diffusion also name the class of a training
callback as a key; an empty class stands in for it. A file that needs anything else is refused by name. There is no
second attempt with fewer restrictions.
"""

import argparse
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from marcli.errors import MarcliError

# torch compares the full name of a global, so an empty class of that name is all the file can reach
CALLBACK_KEY = type("ModelCheckpoint", (), {"__module__": "pytorch_lightning.callbacks.model_checkpoint"})
NAMED_AT_MOST = 20
ZIP_START = b"PK\x03\x04"


def read_torch_file(path: Path) -> dict[str, Any]:
    """Return the mapping stored in a `.pth`, `.pt` or `.ckpt` file, tensors on the CPU (mapped from the file).

    Raises MarcliError for a file that is absent, cut short, not of torch, not a mapping, or that would run code.
    """
    check_is_file(path)
    with path.open("rb") as file:
        is_zip = file.read(len(ZIP_START)) == ZIP_START
    if is_zip and not zipfile.is_zipfile(path):
        raise MarcliError(truncated(path))
    try:
        with torch.serialization.safe_globals([argparse.Namespace, CALLBACK_KEY]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what cannot be read is an error below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # for files that are not torch's the unpickler raises many kinds
        raise MarcliError(unreadable(path, error)) from None
    if not isinstance(content, dict):
        raise MarcliError(f"{path} holds a {type(content).__name__}, not a mapping of names to tensors.")
    return content


def read_safetensors_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a `.safetensors` file, on the CPU, and its text metadata.

    Raises MarcliError for a file that is absent, cut short or of another format.
    """
    check_is_file(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise MarcliError(
            f"{path} is not a complete safetensors file ({error}): it is cut short or of another format. "
            "Fetch or copy it again."
        ) from None


def check_is_file(path: Path) -> None:
    """Raise MarcliError unless `path` is a file with something in it."""
    if not path.is_file():
        raise MarcliError(f"There is no weights file {path}.")
    if path.stat().st_size == 0:
        raise MarcliError(f"{path} is empty: fetch or copy it again.")


def truncated(path: Path) -> str:
    return (
        f"{path} is cut short ({path.stat().st_size:,} bytes, and its table of contents, which comes last, is "
        "missing): fetch or copy it again."
    )


def unreadable(path: Path, error: Exception) -> str:
    """Return why torch's restricted unpickler refused `path`, in one sentence or two."""
    name = re.search(r"GLOBAL:? ([\w.]+)", str(error))
    if name is not None:
        return (
            f"{path} is refused: besides tensors it asks for {name[1]}, and loading it would run code. Nothing of it "
            "was run. Ask its author for a safetensors file."
        )
    if isinstance(error, EOFError) or "central directory" in str(error) or "Ran out of input" in str(error):
        return truncated(path)
    return (
        f"{path} is not a weights file that torch can read without running code "
        f"({type(error).__name__}); it may be damaged, or a web page saved in its place. Fetch it again."
    )


def assign_strictly(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Give every parameter and buffer of `module` its tensor; `module` may live on the meta device.

    Values are converted to the module's dtype. Raises MarcliError naming each missing, extra or misshapen tensor
    of `source`, before anything is assigned.
    """
    expected = module.state_dict()
    check_names_and_shapes({name: tuple(value.shape) for name, value in expected.items()}, tensors, source=source)
    converted = {name: tensors[name].to(dtype=value.dtype) for name, value in expected.items()}
    module.load_state_dict(converted, strict=True, assign=True)


def check_names_and_shapes(
    expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], *, source: str
) -> None:
    """Raise MarcliError unless `tensors` has exactly the names and shapes of `expected`."""
    faults = name_faults(expected, tensors)
    kinds = []
    for kind in ("missing", "not of this model", "of another shape"):
        named = [fault for of_kind, fault in faults if of_kind == kind]
        if named:
            more = f" and {len(named) - NAMED_AT_MOST} more" if len(named) > NAMED_AT_MOST else ""
            kinds.append(f"{len(named)} {kind}: {', '.join(named[:NAMED_AT_MOST])}{more}")
    if kinds:
        raise MarcliError(f"The tensors of {source} do not fit the model; {'; '.join(kinds)}.")


def name_faults(expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Return one pair (kind of fault, tensor in words) per tensor that is missing, extra or misshapen."""
    missing = [("missing", f"{name} {list(shape)}") for name, shape in expected.items() if name not in tensors]
    extra = [("not of this model", described(name, tensors[name])) for name in tensors if name not in expected]
    misshapen = [
        ("of another shape", f"{described(name, tensors[name])} where the model has {list(shape)}")
        for name, shape in expected.items()
        if name in tensors and not (isinstance(tensors[name], Tensor) and tuple(tensors[name].shape) == tuple(shape))
    ]
    return missing + extra + misshapen


def described(name: str, value: object) -> str:
    return f"{name} {list(value.shape)}" if isinstance(value, Tensor) else f"{name} (a {type(value).__name__})"
