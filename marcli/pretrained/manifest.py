"""The manifest of a shared run: the sha256 of every file that loading reads."""

import json
from pathlib import Path

from marcli.errors import MarcliError
from marcli.runtime.atomic import sha256_file


def check_manifest(folder: Path, name: str) -> None:
    """Raise MarcliError unless every file that loading reads has the sha256 that a shared run's manifest states."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except FileNotFoundError:
        raise MarcliError(f"{name} has no manifest.json to check its files by: share it again with marcli.") from None
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict):
        raise MarcliError(f"{name}: its manifest.json is not a mapping of files to sha256.")
    read = [folder / "recipe.yaml", folder / "weights.safetensors", *(folder / "tokenizer").rglob("*")]
    for path in read:
        entry = path.relative_to(folder).as_posix()
        if path.is_file() and entry not in manifest:
            raise MarcliError(f"{name}: its manifest.json does not name {entry}, so it is not what was shared.")
    for entry, sha256 in manifest.items():
        if Path(entry).is_absolute() or ".." in Path(entry).parts:
            raise MarcliError(f"{name}: its manifest.json names {entry}, outside of its folder.")
        path = folder / entry
        if not path.is_file():
            raise MarcliError(f"{name} lacks {entry}, which its manifest.json names.")
        if sha256_file(path) != sha256:
            raise MarcliError(f"{name}: {entry} is not the file that was shared (its sha256 differs). Fetch it again.")
