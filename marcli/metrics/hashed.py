"""Arrays in a file with their own hash: what is damaged counts as missing."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from marcli.runtime.atomic import atomic_file

logger = logging.getLogger("marcli.metrics")


def write_hashed(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write the arrays, completely or not at all; raises OSError or SafetensorError."""
    with atomic_file(path) as incomplete:
        save_file(arrays, incomplete, {"sha256": digest_of(arrays)})


def read_hashed(path: Path, names: Sequence[str], *, consequence: str) -> dict[str, np.ndarray] | None:
    """Return the arrays in the order in which they were written, or None where the file is missing or damaged.

    One line says that it is damaged and what follows from it, the `consequence`.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in names}
            expected = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError) as error:
        logger.warning("%s is damaged (%s): %s", path, error, consequence)
        return None
    if digest_of(arrays) != expected:
        logger.warning("%s is damaged (its hash does not fit): %s", path, consequence)
        return None
    return arrays


def digest_of(arrays: dict[str, np.ndarray]) -> str:
    """Return the hash of the arrays' values."""
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays.values())).hexdigest()
