"""A run's weights file: one or two sets of weights, `ema.*` and `raw.*`, and the recipe they were trained by."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from marcli.errors import MarcliError


def sets_of(path: Path) -> tuple[str, ...]:
    """Return which sets of weights a `.safetensors` file of ours holds, of 'ema' and 'raw'; none for others."""
    with opened(path) as file:
        prefixes = {name.partition(".")[0] for name in file.keys()}  # noqa: SIM118
    return tuple(each for each in ("ema", "raw") if each in prefixes) if prefixes <= {"ema", "raw"} else ()


def recipe_inside(path: Path) -> str | None:
    """Return the recipe that training wrote into a weights file, as YAML; None where there is none."""
    with opened(path) as file:
        written = (file.metadata() or {}).get("marcli", "{}")
    try:
        return json.loads(written).get("recipe_text")
    except (ValueError, AttributeError):
        return None


def read_set(path: Path, kind: str) -> dict[str, Tensor]:
    """Return one set of weights, without its prefix."""
    prefix = f"{kind}."
    with opened(path) as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


def opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise MarcliError(f"{path} is not a complete safetensors file ({error}): copy or fetch it again.") from None
