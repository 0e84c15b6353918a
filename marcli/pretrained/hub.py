"""Names to files on this machine: a local copy, the hub's cache, or a download that says its size first.

Everything works without a network from a local copy, and what is missing is named together with the place to put it.
Endpoint, token and cache of the hub are those of huggingface_hub (HF_ENDPOINT, HF_TOKEN, HF_HOME).
"""

import logging
import re
from pathlib import Path

from marcli.errors import MarcliError
from marcli.pretrained.published import DIFFUSERS_FILES, MODELS, TOKENIZERS, HubFile, PublishedModel
from marcli.runtime.home import at_home
from marcli.runtime.user_cache import user_cache

log = logging.getLogger("marcli")

HUB_PREFIX = "hub:"
SHARED_FILES = ("recipe.yaml", "weights.safetensors", "manifest.json", "tokenizer/*", "README.md")
HUB_ID = re.compile(r"(?!.*\.\.)[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


def find_model(name: str) -> tuple[Path, PublishedModel]:
    """Return the file of a published model, local or downloaded, and what is known of it.

    Raises MarcliError when it is neither here nor reachable, or when its hash is not the known one.
    """
    model = MODELS[name]
    here = local_copy(name)
    if here is not None:
        return here, model
    if model.note is not None:
        log.warning(model.note)
    place = published_folder(name) / model.local_names[0]
    return fetch(model.file, place=place, elsewhere=model.elsewhere), model


def local_copy(name: str) -> Path | None:
    """Return the copy of a published model that someone put in its place, or None."""
    paths = [published_folder(name) / local_name for local_name in MODELS[name].local_names]
    return next((path for path in paths if path.is_file()), None)


def must_be_downloaded(name: str) -> bool:
    """Whether a published model is neither in its place nor in the hub's cache."""
    import huggingface_hub

    file = MODELS[name].file
    cached = huggingface_hub.try_to_load_from_cache(file.repo, file.name, revision=file.revision)
    return local_copy(name) is None and not isinstance(cached, str)


def find_tokenizer_weights(kind: str, weights: str | None) -> Path:
    """Return the weights of an autoencoder: a file, or a folder in diffusers' layout (config.json and weights).

    `weights` is a recipe's `tokenizer.weights`: a path, a hub id `user/name[@revision]`, or None for the published
    ones of `kind`. Raises MarcliError naming what is missing and where to put it.
    """
    if weights is not None:
        return named_weights(weights)
    tokenizer = TOKENIZERS[kind]
    folder = published_folder(kind)
    is_folder = "config.json" in tokenizer.local_names
    present = [folder / name for name in tokenizer.local_names if (folder / name).is_file()]
    if is_folder and len(present) == len(tokenizer.local_names):
        return folder
    if present and not is_folder:
        return present[0]
    place = folder if is_folder else folder / tokenizer.local_names[0]
    if not tokenizer.files:
        raise MarcliError(
            f"The published weights of tokenizer {kind} are not on this machine: put {tokenizer.elsewhere} at {place}, "
            "or name your copy with tokenizer.weights=PATH."
        )
    paths = [fetch(file, place=place, elsewhere=tokenizer.elsewhere) for file in tokenizer.files]
    return paths[0].parent if is_folder else paths[0]


def named_weights(weights: str) -> Path:
    path = at_home(weights)
    if path.exists():
        return path
    identifier = weights.removeprefix(HUB_PREFIX)
    if not HUB_ID.fullmatch(identifier) or path.suffix in (".ckpt", ".pth", ".pt", ".safetensors", ".bin"):
        raise MarcliError(f"tokenizer.weights names {weights}, and there is no such file or folder.")
    repo, _, revision = identifier.partition("@")
    place = user_cache() / "published" / identifier.replace("/", "--")  # of this revision alone
    if place.is_dir():
        return place
    files = [HubFile(repo=repo, name=name, revision=revision or "main") for name in DIFFUSERS_FILES]
    paths = [fetch(file, place=place, elsewhere=f"the hub's {repo}") for file in files]
    return paths[0].parent


def published_folder(name: str) -> Path:
    """Return where a local copy of a published file is looked for, before the hub."""
    return user_cache() / "published" / name


def fetch(file: HubFile, *, place: Path, elsewhere: str) -> Path:
    """Return `file` from the hub's cache, downloading it first where it is not there.

    The size is said before the first byte. Raises MarcliError when the hub cannot be reached or has no such file,
    naming `place` (where a copy would be found) and `elsewhere` (another source), or when the hash is another.
    """
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(file.repo, file.name, revision=file.revision)
    if isinstance(cached, str):
        return checked(Path(cached), file)
    try:
        url = huggingface_hub.hf_hub_url(file.repo, file.name, revision=file.revision)
        size = huggingface_hub.get_hf_file_metadata(url).size
        log.warning("Downloading %s of %s: %s.", file.name, file.repo, readable_bytes(size))
        path = Path(huggingface_hub.hf_hub_download(file.repo, file.name, revision=file.revision))
    except Exception as error:  # the transport's errors differ between versions of huggingface_hub
        raise MarcliError(
            f"{file.name} is not on this machine, and {file.repo} could not give it ({why(error)}): "
            f"put a copy at {place} (from {elsewhere}), or set HF_ENDPOINT to a mirror or HF_HOME to a cache with it."
        ) from error
    return checked(path, file)


def fetch_shared(identifier: str, *, whole: bool) -> Path:
    """Return the folder of a shared run, `user/name[@revision]`, downloaded where it is not cached or has changed.

    Without `whole` only the recipe is fetched, and the size of the rest is said. Raises MarcliError when it is neither
    cached nor reachable, or is not a run.
    """
    import huggingface_hub

    if not HUB_ID.fullmatch(identifier):
        raise MarcliError(f"hub:{identifier} is not a hub name: write hub:user/name, or hub:user/name@revision.")
    repo, _, revision = identifier.partition("@")
    needed = {"recipe.yaml", "weights.safetensors"} if whole else {"recipe.yaml"}
    patterns = list(SHARED_FILES) if whole else ["recipe.yaml"]
    try:
        api = huggingface_hub.HfApi()
        files = api.model_info(repo, revision=revision or None, files_metadata=True).siblings or []
        wanted = [file for file in files if file.rfilename in SHARED_FILES or file.rfilename.startswith("tokenizer/")]
        absent = {"recipe.yaml", "weights.safetensors"} - {file.rfilename for file in wanted}
        if not absent:
            size = sum(file.size or 0 for file in wanted)
            if not isinstance(
                huggingface_hub.try_to_load_from_cache(repo, "weights.safetensors", revision=revision or "main"), str
            ):
                text = "Downloading %s: %s." if whole else "%s would be downloaded: %s."
                log.warning(text, repo, readable_bytes(size))
        folder = huggingface_hub.snapshot_download(repo, revision=revision or None, allow_patterns=patterns)
    except Exception as error:  # as above
        folder = cached_snapshot(repo, revision, patterns)
        if folder is None or not all((Path(folder) / name).is_file() for name in needed):
            raise MarcliError(
                f"{repo} is not on this machine, and the hub could not give it ({why(error)}): put its folder anywhere "
                "and name that instead, or set HF_ENDPOINT to a mirror or HF_HOME to a cache that has it."
            ) from error
        absent = set()
    if absent:
        raise MarcliError(f"{repo} is not a run shared by marcli: it has no {' and no '.join(sorted(absent))}.")
    return Path(folder)


def cached_snapshot(repo: str, revision: str, patterns: list[str]) -> str | None:
    """Return the hub cache's folder with files of a shared run, without the network; None where there is none."""
    import huggingface_hub

    try:
        return huggingface_hub.snapshot_download(
            repo, revision=revision or None, allow_patterns=patterns, local_files_only=True
        )
    except Exception:  # as above
        return None


def why(error: Exception) -> str:
    """Return the cause of a hub error in a few words."""
    from huggingface_hub import errors

    match error:
        case errors.GatedRepoError():
            return "access must be requested on its page, and HF_TOKEN set"
        case errors.RepositoryNotFoundError():
            return "no such repository, or HF_TOKEN does not give access"
        case errors.RevisionNotFoundError():
            return "it has no such revision"
        case errors.EntryNotFoundError() if not isinstance(error, errors.LocalEntryNotFoundError):
            return "it has no such file"
        case errors.OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set"
        case errors.HfHubHTTPError():
            return f"HTTP status {error.response.status_code}"
        case _:
            return "no connection to the hub"


def checked(path: Path, file: HubFile) -> Path:
    """Return `path` when its hash is the known one of `file`, or none is known; raises MarcliError otherwise."""
    if file.sha256 is None:
        return path
    from marcli.runtime.atomic import sha256_file

    found = sha256_file(path)
    if found != file.sha256:
        raise MarcliError(
            f"{path} is not the published {file.name}: its sha256 is {found}, the known one is {file.sha256}. "
            "Delete it and fetch it again."
        )
    return path


def readable_bytes(size: int | None) -> str:
    """Return `size` as people read it: 1.66 GB (1,663,614,946 bytes)."""
    if size is None:
        return "of unknown size"
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.2f} {name} ({size:,} bytes)"
    return f"{size} bytes"
