"""From the authors' files to pictures: the real path, on filled weights of their layout."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from marcli.errors import MarcliError
from marcli.pretrained.official_mar import SHIPPED, our_name
from marcli.sampling.engine.build import build_engine
from marcli.sampling.generate import generate
from marcli.sampling.load import load_system
from marcli.tokenizer.base import Tokenizer
from tests.pretrained.checkpoints import SMALL, filled, save_checkpoint
from tests.reference.fill import fill

FEW_STEPS = ("sample.steps=2", "sample.diffusion_steps=3", "sample.max_timestep=500")
REFERENCE = Path(__file__).parent.parent / "reference"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MARCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache"


@pytest.fixture
def kl16(cache: Path) -> Path:
    """A file in the layout of the authors' kl16.ckpt, where a local copy is looked for."""
    arrays = fill(json.loads((REFERENCE / "kl16_layout.json").read_text()))
    path = cache / "published" / "kl16" / "kl16.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"model": {name: torch.from_numpy(array) for name, array in arrays.items()}}, path)
    return path


@pytest.fixture
def without_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    def scaled_only(recipe, *, folder):
        return Tokenizer(recipe.latent, scale=recipe.tokenizer.scale)

    monkeypatch.setattr("marcli.sampling.load.build_tokenizer", scaled_only)


def test_an_authors_checkpoint_samples_pictures(tmp_path: Path, kl16: Path) -> None:
    raw = filled(SMALL)
    averaged = {name: value * 0.5 for name, value in raw.items()}
    path = save_checkpoint(tmp_path / "checkpoint-last.pth", raw, averaged)
    system = load_system(str(path), weights="ema", overrides=FEW_STEPS)
    assert (system.recipe.name, system.recipe.data.image_size, system.recipe.data.num_classes) == ("mar_b", 64, 10)
    assert system.recipe.model.backbone.heads == 12 and system.tokenizer.scale == 0.2325
    assert system.weights == "ema" and "are not the published weights" in system.note
    assert torch.equal(system.model.null_class, averaged["fake_latent"])
    engine = build_engine(system, name="plain", device=torch.device("cpu"), precision="fp32")
    (pictures,) = generate(engine, system.tokenizer, classes=[3, 7], seed=0, batches=[range(2)])
    assert pictures.images.shape == (2, 3, 64, 64) and pictures.images.float().std() > 1


def test_the_authors_settings_with_and_without_guidance(tmp_path: Path, cache: Path, without_tokenizer: None) -> None:
    raw = filled(SMALL)
    path = str(save_checkpoint(tmp_path / "checkpoint-last.pth", raw, raw))

    def temperature(*overrides: str) -> float:
        return load_system(path, weights="ema", overrides=overrides).recipe.sample.temperature

    assert temperature() == 1.0
    assert temperature("sample.cfg=1") == 0.95
    assert temperature("sample.cfg=1", "sample.temperature=1.0") == 1.0


def test_a_published_name_takes_the_local_copy(cache: Path, without_tokenizer: None) -> None:
    raw = filled(SMALL)
    averaged = {**raw, "fake_latent": raw["fake_latent"] + 1}
    save_checkpoint(cache / "published" / "mar-l" / "checkpoint-last.pth", raw, averaged)
    for weights, expected in (("ema", averaged), ("raw", raw)):
        system = load_system("mar-l", weights=weights, overrides=())
        assert (system.name, system.weights, system.note) == ("mar-l", weights, None)
        assert torch.equal(system.model.null_class, expected["fake_latent"])


def test_a_mirror_without_averaged_weights_says_so(cache: Path, without_tokenizer: None) -> None:
    (cache / "published" / "mar-l").mkdir(parents=True)
    save_file(filled(SMALL), cache / "published" / "mar-l" / "mar-large.safetensors")
    system = load_system("mar-l", weights="ema", overrides=())
    assert system.weights == "raw"
    assert "only its raw weights" in system.note and "checkpoint-last.pth" in system.note


def test_without_network_the_file_and_its_place_are_named(cache: Path) -> None:
    with pytest.raises(MarcliError, match=r"checkpoint-last\.pth is not on this machine.*published/mar-b/checkpoint"):
        load_system("mar-b", weights="ema", overrides=())


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_the_published_sizes_load_sample_and_round_trip(tmp_path: Path, kl16: Path, name: str) -> None:
    raw = filled(SHIPPED[name])
    averaged = {key: value * 0.5 for key, value in raw.items()}
    path = save_checkpoint(tmp_path / "checkpoint-last.pth", raw, averaged)
    del averaged
    system = load_system(str(path), weights="ema", overrides=FEW_STEPS)
    state = system.model.state_dict()
    assert system.recipe.name == name and len(state) == len(raw)
    for key, value in raw.items():
        assert torch.equal(state[our_name(key)], value * 0.5), key
    engine = build_engine(system, name="plain", device=torch.device("cpu"), precision="fp32")
    (pictures,) = generate(engine, system.tokenizer, classes=[207], seed=0, batches=[range(1)])
    assert pictures.images.shape == (1, 3, 256, 256) and pictures.images.float().std() > 1
