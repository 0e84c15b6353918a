"""Names to files: local copies, the hub's cache and downloads, each in a process with its own environment."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pretrained.hub_endpoint import Endpoint, serve

NOWHERE = "http://127.0.0.1:9"  # nothing listens there


@pytest.fixture
def hub() -> Iterator[Endpoint]:
    with serve() as endpoint:
        yield endpoint


def ask(expression: str, folder: Path, *, endpoint: str, setup: str = "", **environment: str) -> tuple[str, str]:
    """Evaluate `expression` over the functions of hub.py; return (its value or the error's sentence, what was said)."""
    program = f"""
from marcli.errors import MarcliError
from marcli.pretrained import hub, published
from marcli.pretrained.published import HubFile, PublishedModel, PublishedTokenizer
{setup}
try:
    print({expression})
except MarcliError as error:
    print("MarcliError:", error)
"""
    offline = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "MARCLI_"))}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=offline
        | {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf"), "MARCLI_CACHE": str(folder / "marcli")}
        | {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        | environment,
    )
    return done.stdout.strip(), done.stderr


def publish(hub: Endpoint, content: bytes, *, sha256: str | None = None) -> str:
    """Put a checkpoint on the hub; return the program that makes it `mar-b`."""
    hub.repos["someone/mar"] = {"checkpoint-last.pth": content}
    file = f"HubFile(repo='someone/mar', name='checkpoint-last.pth', sha256={sha256!r})"
    names = "('checkpoint-last.pth', 'mar-base.safetensors')"
    return (
        f"published.MODELS['mar-b'] = PublishedModel(recipe='mar_b', file={file}, sets=('raw',), local_names={names}, "
        "elsewhere='its authors')"
    )


def test_a_download_says_its_size_first_and_happens_once(hub: Endpoint, tmp_path: Path) -> None:
    content = os.urandom(1_234_567)
    setup = publish(hub, content, sha256=hashlib.sha256(content).hexdigest())
    path, said = ask("hub.find_model('mar-b')[0]", tmp_path, endpoint=hub.url, setup=setup)
    assert Path(path).read_bytes() == content
    assert "Downloading checkpoint-last.pth of someone/mar: 1.23 MB (1,234,567 bytes)." in said
    hub.requests.clear()
    again, said = ask("hub.find_model('mar-b')[0]", tmp_path, endpoint=hub.url, setup=setup)
    assert (again, said, hub.requests) == (path, "", [])
    without_network, _ = ask("hub.find_model('mar-b')[0]", tmp_path, endpoint=NOWHERE, setup=setup)
    assert without_network == path


def test_another_file_than_the_known_one_is_refused(hub: Endpoint, tmp_path: Path) -> None:
    setup = publish(hub, b"something else", sha256="0" * 64)
    answer, _ = ask("hub.find_model('mar-b')[0]", tmp_path, endpoint=hub.url, setup=setup)
    assert "MarcliError" in answer and "is not the published checkpoint-last.pth" in answer
    assert hashlib.sha256(b"something else").hexdigest() in answer


def test_a_local_copy_needs_no_hub(tmp_path: Path) -> None:
    place = tmp_path / "marcli" / "published" / "mar-b" / "mar-base.safetensors"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"local")
    assert ask("hub.find_model('mar-b')[0]", tmp_path, endpoint=NOWHERE) == (str(place), "")


def test_without_a_network_the_file_and_its_place_are_named(tmp_path: Path) -> None:
    answer, _ = ask("hub.find_model('mar-b')[0]", tmp_path, endpoint=NOWHERE)
    place = tmp_path / "marcli" / "published" / "mar-b" / "checkpoint-last.pth"
    assert answer.startswith("MarcliError: checkpoint-last.pth is not on this machine, and jadechoghari/mar could not")
    assert f"(no connection to the hub): put a copy at {place}" in answer
    assert "HF_ENDPOINT" in answer and "HF_HOME" in answer and "\n" not in answer
    offline, _ = ask("hub.find_model('mar-b')[0]", tmp_path, endpoint=NOWHERE, HF_HUB_OFFLINE="1")
    assert "(HF_HUB_OFFLINE is set)" in offline


def test_what_the_hub_does_not_have_is_said(hub: Endpoint, tmp_path: Path) -> None:
    answer, _ = ask("hub.find_model('mar-b')[0]", tmp_path, endpoint=hub.url)
    assert "(no such repository, or HF_TOKEN does not give access)" in answer
    hub.repos["jadechoghari/mar"] = {}
    answer, _ = ask("hub.find_model('mar-b')[0]", tmp_path, endpoint=hub.url)
    assert "(it has no such file)" in answer


def test_the_hubs_cache_is_used_as_it_lies(tmp_path: Path) -> None:
    repo = tmp_path / "hf" / "hub" / "models--stabilityai--sd-vae-ft-ema"
    commit = "a" * 40
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (repo / "blobs" / name).write_text(name)
        (snapshot / name).symlink_to(repo / "blobs" / name)
    answer, said = ask("hub.find_tokenizer_weights('kl8', None)", tmp_path, endpoint=NOWHERE)
    assert (answer, said) == (str(snapshot), "")
    answer, _ = ask("hub.find_tokenizer_weights('kl8', 'stabilityai/sd-vae-ft-ema')", tmp_path, endpoint=NOWHERE)
    assert answer == str(snapshot)


def test_tokenizers_by_path_place_and_hub_id(hub: Endpoint, tmp_path: Path) -> None:
    own = tmp_path / "own.ckpt"
    own.write_bytes(b"own")
    hub.repos["user/autoencoder"] = {"config.json": b"{}", "diffusion_pytorch_model.safetensors": bytes(10)}
    answers = json.loads(
        ask(
            "__import__('json').dumps([str(hub.find_tokenizer_weights(kind, weights)) for kind, weights in "
            f"[('kl16', {str(own)!r}), ('autoencoder', 'user/autoencoder'), ('autoencoder', 'hub:user/autoencoder')]])",
            tmp_path,
            endpoint=hub.url,
        )[0]
    )
    assert answers[0] == str(own)
    assert (Path(answers[1]) / "config.json").is_file() and answers[2] == answers[1]


def test_a_missing_tokenizer_is_named_with_its_place(tmp_path: Path) -> None:
    cache = tmp_path / "marcli" / "published"
    setup = """
def answer(kind, weights):
    try:
        hub.find_tokenizer_weights(kind, weights)
    except MarcliError as error:
        return str(error)
"""
    asked = [("kl16", None), ("kl8", None), ("vq16", None), ("kl16", "no/such.ckpt"), ("kl16", "/no/such")]
    answers, _ = ask(f"'\\n'.join(answer(*each) for each in {asked})", tmp_path, endpoint=NOWHERE, setup=setup)
    kl16, kl8, vq16, relative, absolute = answers.splitlines()
    assert f"put a copy at {cache}/kl16/kl16.ckpt" in kl16
    assert f"put a copy at {cache}/kl8 (from the hub's stabilityai/sd-vae-ft-ema)" in kl8
    assert f"put the model.ckpt inside https://ommer-lab.com/files/latent-diffusion/vq-f16.zip at {cache}/vq16" in vq16
    assert relative == "tokenizer.weights names no/such.ckpt, and there is no such file or folder."
    assert absolute == "tokenizer.weights names /no/such, and there is no such file or folder."


def test_a_shared_run_is_fetched_whole_and_kept(hub: Endpoint, tmp_path: Path) -> None:
    files = {"recipe.yaml": b"name: x", "weights.safetensors": bytes(5000), "tokenizer/tokenizer.json": b"{}"}
    hub.repos["user/run"] = {**files, "huge.bin": bytes(10), "code.py": b"raise SystemExit"}
    folder, said = ask("hub.fetch_shared('user/run', whole=True)", tmp_path, endpoint=hub.url)
    found = {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}
    assert found == set(files)
    assert "Downloading user/run: 5.01 kB (5,009 bytes)." in said
    again, said = ask("hub.fetch_shared('user/run', whole=True)", tmp_path, endpoint=hub.url)
    assert again == folder and "Downloading" not in said
    without_network, _ = ask("hub.fetch_shared('user/run', whole=True)", tmp_path, endpoint=NOWHERE)
    assert without_network == folder
    hub.repos["user/run"]["weights.safetensors"] = b"new"
    changed, _ = ask("hub.fetch_shared('user/run', whole=True)", tmp_path, endpoint=hub.url)
    assert (Path(changed) / "weights.safetensors").read_bytes() == b"new"


def test_of_a_shared_run_the_recipe_alone_is_fetched(hub: Endpoint, tmp_path: Path) -> None:
    hub.repos["user/run"] = {"recipe.yaml": b"name: x", "weights.safetensors": bytes(5000)}
    folder, said = ask("hub.fetch_shared('user/run', whole=False)", tmp_path, endpoint=hub.url)
    assert [path.name for path in Path(folder).iterdir()] == ["recipe.yaml"]
    assert "user/run would be downloaded: 5.01 kB (5,007 bytes)." in said
    assert ask("hub.fetch_shared('user/run', whole=False)", tmp_path, endpoint=NOWHERE)[0] == folder
    answer, _ = ask("hub.fetch_shared('user/run', whole=True)", tmp_path, endpoint=NOWHERE)
    assert "user/run is not on this machine" in answer


def test_what_is_not_a_shared_run_is_said(hub: Endpoint, tmp_path: Path) -> None:
    hub.repos["user/other"] = {"model.bin": b"x"}
    answer, _ = ask("hub.fetch_shared('user/other', whole=True)", tmp_path, endpoint=hub.url)
    assert "user/other is not a run shared by marcli: it has no recipe.yaml and no weights.safetensors" in answer
    answer, _ = ask("hub.fetch_shared('user', whole=True)", tmp_path, endpoint=hub.url)
    assert "hub:user is not a hub name" in answer
    answer, _ = ask("hub.fetch_shared('user/absent', whole=True)", tmp_path, endpoint=hub.url)
    assert "no such repository" in answer


def test_a_file_that_changed_in_the_hubs_cache_is_refused(hub: Endpoint, tmp_path: Path) -> None:
    setup = publish(hub, b"published", sha256=hashlib.sha256(b"published").hexdigest())
    path, _ = ask("hub.find_model('mar-b')[0]", tmp_path, endpoint=hub.url, setup=setup)
    Path(path).resolve().write_bytes(b"changed")
    answer, _ = ask("hub.find_model('mar-b')[0]", tmp_path, endpoint=NOWHERE, setup=setup)
    assert "MarcliError" in answer and "is not the published checkpoint-last.pth" in answer


def test_a_local_autoencoder_stands_for_its_own_revision_alone(tmp_path: Path) -> None:
    places = tmp_path / "marcli" / "published"
    for name in ("user--autoencoder", "user--autoencoder@v2"):
        (places / name).mkdir(parents=True)
    setup = """
def answer(weights):
    try:
        return str(hub.find_tokenizer_weights("autoencoder", weights))
    except MarcliError as error:
        return str(error)
"""
    asked = ["user/autoencoder", "hub:user/autoencoder@v2", "user/autoencoder@v3", "user/autoencoder@../../x", "a/b..c"]
    answers, _ = ask(f"'\\n'.join(map(answer, {asked}))", tmp_path, endpoint=NOWHERE, setup=setup)
    main, second, third, upwards, dots = answers.splitlines()
    assert (main, second) == (str(places / "user--autoencoder"), str(places / "user--autoencoder@v2"))
    assert f"put a copy at {places}/user--autoencoder@v3" in third
    assert "there is no such file or folder" in upwards and "there is no such file or folder" in dots
    answer, _ = ask("hub.fetch_shared('user/run@..', whole=True)", tmp_path, endpoint=NOWHERE)
    assert "is not a hub name" in answer
