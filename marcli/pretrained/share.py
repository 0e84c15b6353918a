"""A run on the hub: what `sample` and `eval-fid` need, a manifest of hashes, and a model card made from the run itself.

Nothing of the sharer's machine travels along (folder names are cut off), and an autoencoder that is not a published one
goes with the run, so that `hub:user/name` is complete.
"""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from marcli.errors import MarcliError, UsageError
from marcli.pretrained.card import model_card
from marcli.pretrained.hub import HUB_ID, why
from marcli.recipe.reader import read_recipe, recipe_text
from marcli.recipe.schema import Recipe
from marcli.runtime.atomic import sha256_file
from marcli.runtime.home import at_home
from marcli.runtime.rundir import RunDir

TOKENIZER_RECORD = "tokenizer.json"
ABSOLUTE = re.compile(r"(?<![\w./])~?/(?!/)[^\s'\"(),;:]+")  # a path, but not the rest of a https:// address


@dataclass(frozen=True)
class Upload:
    """A file of the shared folder: its bytes, or the file on this machine that has them."""

    name: str
    source: Path | bytes

    @property
    def sha256(self) -> str:
        if isinstance(self.source, bytes):
            return hashlib.sha256(self.source).hexdigest()
        return sha256_file(self.source)


def check_can_push(repo: str) -> None:
    """Raise UsageError, without the network, when `repo` is no hub name or nobody is logged in."""
    import huggingface_hub

    if not HUB_ID.fullmatch(repo) or "@" in repo:
        raise UsageError(f"--push-to {repo}: write the hub's USER/NAME.")
    if huggingface_hub.get_token() is None:
        raise UsageError(f"Sharing as {repo} needs a token of the hub: run `hf auth login`, or set HF_TOKEN.")


def push_run(run: RunDir, repo: str) -> str:
    """Share a finished run as `repo` (made public when it is new) and return its address.

    Raises MarcliError when the run is not complete or the hub refuses, UsageError as `check_can_push`.
    """
    import huggingface_hub

    check_can_push(repo)
    api = huggingface_hub.HfApi()
    with TemporaryDirectory(dir=run.path, prefix=".sharing-") as aside:
        operations = [
            huggingface_hub.CommitOperationAdd(
                path_in_repo=each.name,
                path_or_fileobj=each.source if isinstance(each.source, bytes) else str(each.source),
            )
            for each in shared_files(run, repo, Path(aside))
        ]
        try:
            api.create_repo(repo, exist_ok=True)
            api.create_commit(repo, operations=operations, commit_message=f"Run {run.path.name}")
        except Exception as error:  # the transport's errors differ between versions of huggingface_hub
            raise MarcliError(
                f"The hub did not take {run.path} as {repo} ({why(error)}): everything is still in {run.path}; share "
                "it again with the same command."
            ) from error
    return f"{api.endpoint}/{repo}"


def shared_files(run: RunDir, repo: str, aside: Path) -> list[Upload]:
    """Return everything that is uploaded for a run, some of it written to `aside`.

    Raises MarcliError when a part is missing.
    """
    for path in (run.recipe_path, run.weights_path):
        if not path.is_file():
            raise MarcliError(f"{run.path} cannot be shared: it has no {path.name} yet.")
    recipe = without_local_names(read_recipe(run.recipe_path, []))
    needed = [
        Upload("recipe.yaml", recipe_text(recipe).encode()),
        Upload("weights.safetensors", weights_without_local_names(run.weights_path, recipe_text(recipe), aside)),
        *tokenizer_files(run.tokenizer_path),
    ]
    manifest = {each.name: each.sha256 for each in needed}
    results = measured(run.path / "eval")
    grid = run.samples / "grid.png"
    card = model_card(
        repo,
        recipe,
        weights=run.weights_path,
        weights_sha256=manifest["weights.safetensors"],
        results=list(results.values()),
        training=last_line(run.metrics_path),
        has_grid=grid.is_file(),
    )
    shown = [Upload("samples/grid.png", grid)] if grid.is_file() else []
    return [
        *needed,
        *shown,
        *(Upload(f"eval/{name}", (json.dumps(each, indent=1) + "\n").encode()) for name, each in results.items()),
        Upload("manifest.json", (json.dumps(manifest, indent=1) + "\n").encode()),
        Upload("README.md", card.encode()),
    ]


def weights_without_local_names(weights: Path, recipe: str, aside: Path) -> Path:
    """Return the weights file, or a copy in `aside` where the recipe inside it is not the shared one.

    Only the header changes: the tensors' bytes are copied as they are.
    """
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        try:
            facts = json.loads(header["__metadata__"]["marcli"])
        except (KeyError, ValueError):
            return weights
        if facts.get("recipe_text") in (None, recipe):
            return weights
        header["__metadata__"]["marcli"] = json.dumps({**facts, "recipe_text": recipe})
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
        with (aside / weights.name).open("wb") as copy:
            copy.write(len(text).to_bytes(8, "little") + text)
            shutil.copyfileobj(file, copy)
    return aside / weights.name


def tokenizer_files(folder: Path) -> list[Upload]:
    """Return a run's tokenizer folder, together with an autoencoder that is no published one."""
    if not (folder / TOKENIZER_RECORD).is_file():
        return []
    record = read_json(folder / TOKENIZER_RECORD)
    weights = at_home(record["weights"]) if record.get("weights") else None
    along: list[Upload] = []
    if weights is not None and weights.exists():
        if record.get("weights_note") is None:  # its hash is that of the published file
            record["weights"] = None
        elif weights.is_file():
            record["weights"] = weights.name
            along = [Upload(f"tokenizer/{weights.name}", weights)]
        else:
            record["weights"] = "autoencoder"
            files = [path for path in sorted(weights.iterdir()) if path.is_file()]
            along = [Upload(f"tokenizer/autoencoder/{path.name}", path) for path in files]
    record["weights_note"] = without_folders(record.get("weights_note"))
    learned = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != TOKENIZER_RECORD]
    return [
        Upload(f"tokenizer/{TOKENIZER_RECORD}", (json.dumps(record, indent=2) + "\n").encode()),
        *(Upload(f"tokenizer/{path.name}", path) for path in learned),
        *along,
    ]


def measured(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the records of `eval-fid` in a run, by file name, without folders of this machine in any text."""
    records = {path.name: read_json(path) for path in sorted(folder.glob("*.json"))}
    records = {name: record for name, record in records.items() if "metrics" in record and "distance_name" in record}
    return {name: without_folders(record) for name, record in records.items()}


def without_folders(value: Any) -> Any:
    """Return a JSON value with every absolute path, whole or inside a sentence, cut down to its last name."""
    match value:
        case str() if is_local(value) and (" " not in value or Path(value).exists()):
            return Path(value).name
        case str():
            return ABSOLUTE.sub(lambda found: Path(found[0]).name, value)
        case dict():
            return {without_folders(key): without_folders(each) for key, each in value.items()}
        case list():
            return [without_folders(each) for each in value]
    return value


def without_local_names(recipe: Recipe) -> Recipe:
    """Return the recipe without folders of this machine: the data's last name stays, local tokenizer weights go."""
    changed: dict[str, Any] = {}
    if is_local(recipe.data.path):
        changed["data"] = recipe.data.model_copy(update={"path": Path(recipe.data.path).name, "latents": None})
    elif recipe.data.latents is not None:
        changed["data"] = recipe.data.model_copy(update={"latents": None})
    weights = getattr(recipe.tokenizer, "weights", None)
    if weights is not None and is_local(weights) and recipe.tokenizer.kind != "autoencoder":
        changed["tokenizer"] = recipe.tokenizer.model_copy(update={"weights": None})
    elif weights is not None and is_local(weights):
        changed["tokenizer"] = recipe.tokenizer.model_copy(update={"weights": Path(weights).name})
    return recipe.model_copy(update=changed)


def is_local(place: str) -> bool:
    path = at_home(place)
    try:
        return path.is_absolute() or path.exists()
    except OSError:  # a name too long to be one
        return False


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise MarcliError(f"{path} cannot be read as JSON ({error}).") from None
    return content if isinstance(content, dict) else {}


def last_line(path: Path) -> dict[str, Any] | None:
    """Return the last complete line of a metrics.jsonl; None without one."""
    lines = path.read_text().splitlines() if path.is_file() else []
    for line in reversed(lines):
        try:
            return json.loads(line)
        except ValueError:
            continue
    return None
