"""A run travels through a hub and makes the same pictures on the other side."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from safetensors.torch import load_file, save_file

from marcli.errors import MarcliError, UsageError
from marcli.model.build import build_model
from marcli.pretrained.share import check_can_push, shared_files
from marcli.recipe.reader import read_recipe, recipe_from_text, recipe_text, shipped_recipe, write_recipe
from marcli.runtime.rundir import RunDir
from marcli.sampling.engine.build import build_engine
from marcli.sampling.generate import generate
from marcli.sampling.load import load_system
from marcli.sampling.weights import recipe_inside
from tests.pretrained.hub_endpoint import serve

RESULT = {
    "metrics": {"fid": 12.345, "inception_score": 87.6, "precision": 0.7, "recall": 0.5, "kid": 0.00123},
    "distance_name": "FID-5k",
    "num_images": 5000,
    "reference": {"name": "/home/me/stats.npz", "sha256": "ab" * 32},
    "source": {"name": "/home/me/runs/tiny", "seed": 3, "sample": {"steps": 8, "cfg": 2.0, "temperature": 1.0}},
}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A tiny finished run with a measured tokenizer scale, a grid, a log and a result."""
    from marcli.tokenizer.build import build_tokenizer, save_tokenizer

    overrides = ["name=tiny", "model.backbone.width=32", "model.head.width=16", "sample.diffusion_steps=3"]
    recipe = read_recipe(shipped_recipe("digits"), overrides)
    run = RunDir(tmp_path / "runs" / "tiny")
    run.samples.mkdir(parents=True)
    write_recipe(recipe, run.recipe_path)
    torch.manual_seed(0)
    state = build_model(recipe).state_dict()
    tensors = {
        f"{kind}.{name}": value + shift for kind, shift in (("raw", 0), ("ema", 1)) for name, value in state.items()
    }
    save_file(
        tensors, run.weights_path, metadata={"marcli": json.dumps({"recipe_text": recipe_text(recipe), "step": 3})}
    )
    tokenizer = build_tokenizer(recipe, folder=None)
    tokenizer.scale = 1.7
    save_tokenizer(tokenizer, run.tokenizer_path, recipe=recipe)
    (run.samples / "grid.png").write_bytes(b"png" * 1000)
    run.metrics_path.write_text('{"step": 1900, "loss": 0.5}\n{"step": 2000, "loss": 0.25}\n{"step": 20')
    (run.path / "eval").mkdir()
    (run.path / "eval" / "fid-5k.json").write_text(json.dumps(RESULT))
    (run.path / "eval" / "settings.json").write_text("{}")
    return run


def in_process(program: str, folder: Path, endpoint: str, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "MARCLI_"))}
    hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_test"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=kept | hub | environment
    )
    return done.stdout.strip()


def pictures_of(spec: str) -> str:
    """The hash of two pictures that a system makes."""
    system = load_system(spec, weights="ema", overrides=["sample.steps=2"])
    engine = build_engine(system, name="plain", device=torch.device("cpu"), precision="fp32")
    (pictures,) = generate(engine, system.tokenizer, classes=[1, 2], seed=0, batches=[range(2)])
    return hashlib.sha256(pictures.images.numpy().tobytes()).hexdigest()


def test_a_run_is_shared_and_makes_the_same_pictures(run: RunDir, tmp_path: Path) -> None:
    push = (
        "from marcli.pretrained.share import push_run; from marcli.runtime.rundir import RunDir; "
        f"[print(push_run(RunDir({str(run.path)!r}), 'user/tiny')) for again in range(2)]"
    )
    load = "from tests.pretrained.test_share import pictures_of; print(pictures_of('hub:user/tiny'))"
    with serve() as hub:
        assert in_process(push, tmp_path / "sharer", hub.url).split() == [f"{hub.url}/user/tiny"] * 2
        shared = hub.repos["user/tiny"]
        assert shared["weights.safetensors"] == run.weights_path.read_bytes()
        assert list(json.loads(shared["manifest.json"])) == [
            "recipe.yaml",
            "weights.safetensors",
            "tokenizer/tokenizer.json",
        ]
        assert in_process(load, tmp_path / "receiver", hub.url) == pictures_of(str(run.path))


def files_of(run: RunDir) -> dict[str, bytes]:
    with TemporaryDirectory() as aside:
        files = shared_files(run, "user/tiny", Path(aside))
        return {
            each.name: each.source if isinstance(each.source, bytes) else each.source.read_bytes() for each in files
        }


def test_the_card_states_the_run_and_its_numbers(run: RunDir) -> None:
    files = files_of(run)
    card = files["README.md"].decode()
    row = "| FID-5k 12.35 | 87.6 | 0.700 | 0.500 | 0.00123 | 5,000 | 8 | 2 | 1 | 3 | stats.npz `abababababab` |"
    assert row.replace("12.35", format(12.345, ".2f")) in card
    assert "marcli sample hub:user/tiny" in card and "![Samples](samples/grid.png)" in card
    assert "| last logged | step 2000, loss 0.2500 |" in card
    assert hashlib.sha256(files["weights.safetensors"]).hexdigest() in card
    model = build_model(read_recipe(run.recipe_path, []))
    assert f"| parameters | {sum(p.numel() for p in model.parameters()):,} |" in card
    assert set(files) >= {"eval/fid-5k.json", "samples/grid.png"} and "eval/settings.json" not in files


def test_a_card_without_numbers_says_how_to_get_them(run: RunDir) -> None:
    (run.path / "eval" / "fid-5k.json").unlink()
    run.metrics_path.unlink()
    card = files_of(run)["README.md"].decode()
    assert "None are measured yet: `marcli eval-fid hub:user/tiny" in card and "last logged" not in card


def test_nothing_of_this_machine_travels_along(run: RunDir, tmp_path: Path) -> None:
    weights = tmp_path / "secret" / "own.ckpt"
    weights.parent.mkdir()
    weights.write_bytes(b"own autoencoder")
    record = json.loads((run.tokenizer_path / "tokenizer.json").read_text())
    record |= {"weights": str(weights), "weights_note": f"{weights} could not be verified: no sha256 is known"}
    (run.tokenizer_path / "tokenizer.json").write_text(json.dumps(record))
    recipe = read_recipe(
        run.recipe_path, [f"data.path={tmp_path}/secret/images", f"data.latents={tmp_path}/secret/cache"]
    )
    write_recipe(recipe, run.recipe_path)
    metadata = {"marcli": json.dumps({"recipe_text": recipe_text(recipe), "step": 3})}
    tensors = {name: tensor.clone() for name, tensor in load_file(run.weights_path).items()}  # no view of the old file
    save_file(tensors, run.weights_path, metadata=metadata)
    warnings = [f"3 pictures of {tmp_path}/secret/images were skipped ({tmp_path}/secret/images/1.png: not an image)."]
    warnings += ["/home/me/stats.npz is old; see https://example.org/a/b", "~/secret/x: left out"]
    result = {**RESULT, "warnings": warnings, "source": {"images": [f"{tmp_path}/secret/out"]}}
    (run.path / "eval" / "fid-5k.json").write_text(json.dumps(result))
    files = files_of(run)
    shared = json.loads(files["eval/fid-5k.json"])["warnings"]
    assert shared[0] == "3 pictures of images were skipped (1.png: not an image)."
    assert shared[1:] == ["stats.npz is old; see https://example.org/a/b", "x: left out"]
    assert files["tokenizer/own.ckpt"] == b"own autoencoder"
    assert json.loads(files["tokenizer/tokenizer.json"])["weights"] == "own.ckpt"
    assert recipe_from_text(files["recipe.yaml"].decode(), where="shared", overrides=[]).data.path == "images"
    for name, content in files.items():
        assert not any(word in content for word in (b"secret", b"/home/me", str(tmp_path).encode())), name
    (tmp_path / "shared.safetensors").write_bytes(files["weights.safetensors"])
    assert recipe_inside(tmp_path / "shared.safetensors") == files["recipe.yaml"].decode()
    copied = load_file(tmp_path / "shared.safetensors")
    assert copied.keys() == tensors.keys() and all(torch.equal(copied[name], tensors[name]) for name in tensors)


def test_published_tokenizer_weights_stay_where_they_are_published(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "kl16.ckpt").write_bytes(b"published")
    record = json.loads((run.tokenizer_path / "tokenizer.json").read_text())
    record |= {"weights": str(tmp_path / "kl16.ckpt"), "weights_note": None}
    (run.tokenizer_path / "tokenizer.json").write_text(json.dumps(record))
    files = files_of(run)
    assert "tokenizer/kl16.ckpt" not in files
    assert json.loads(files["tokenizer/tokenizer.json"])["weights"] is None


def test_what_cannot_be_shared_is_said_before_the_network(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="USER/NAME"):
        check_can_push("tiny")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UsageError, match="HF_TOKEN"):
        check_can_push("user/tiny")
    run.weights_path.unlink()
    with pytest.raises(MarcliError, match=r"no weights\.safetensors yet"):
        files_of(run)
