"""Whatever the user names becomes the same system; what does not fit is refused by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from marcli.errors import MarcliError, UsageError
from marcli.model.build import build_model
from marcli.recipe.reader import read_recipe, recipe_text, shipped_recipe, write_recipe
from marcli.recipe.schema import Recipe, acts
from marcli.runtime.atomic import sha256_file
from marcli.sampling.engine.build import build_engine
from marcli.sampling.find import default_spec
from marcli.sampling.generate import generate
from marcli.sampling.load import filled_model, load_system, name_system, random_system
from marcli.sampling.system import System
from marcli.tokenizer.build import build_tokenizer, save_tokenizer
from tests.model import tiny

TINY = (
    "model.backbone.width=32",
    "model.backbone.encoder_depth=1",
    "model.backbone.decoder_depth=1",
    "model.head.width=16",
    "model.head.depth=1",
    "sample.diffusion_steps=3",
)


@pytest.fixture
def recipe() -> Recipe:
    return read_recipe(shipped_recipe("digits"), TINY)


def make_run(folder: Path, recipe: Recipe, *, scale: float = 2.0) -> Path:
    """A run as training leaves it: raw and averaged weights differ, the tokenizer's scale is measured."""
    folder.mkdir(parents=True)
    write_recipe(recipe, folder / "recipe.yaml")
    raw = build_model(recipe).state_dict()
    tensors = {f"raw.{name}": value for name, value in raw.items()}
    tensors |= {f"ema.{name}": value + 0.25 for name, value in raw.items()}
    save_file(
        tensors, folder / "weights.safetensors", metadata={"marcli": json.dumps({"recipe_text": recipe_text(recipe)})}
    )
    tokenizer = build_tokenizer(recipe, folder=None)
    tokenizer.scale = scale
    save_tokenizer(tokenizer, folder / "tokenizer", recipe=recipe)
    return folder


def pictures_of(system: System) -> torch.Tensor:
    engine = build_engine(system, name="plain", device=torch.device("cpu"), precision="fp32")
    (pictures,) = generate(engine, system.tokenizer, classes=[3, 7], seed=0, batches=[range(2)])
    return pictures.images


def test_a_name_without_its_weights_is_the_same_and_reads_none_of_them(tmp_path: Path, recipe: Recipe, monkeypatch):
    run = make_run(tmp_path / "run", recipe)
    for spec in (str(run), str(run / "weights.safetensors")):
        for given in (dict(weights="raw", overrides=()), dict(weights="ema", overrides=("sample.cfg=2",))):
            system = load_system(spec, **given)
            with monkeypatch.context() as patched:
                patched.setattr("marcli.sampling.load.sha256_file", lambda path: pytest.fail(f"{path} was read"))
                named = name_system(spec, **given)
            assert (named.name, named.recipe, named.weights) == (system.name, system.recipe, system.weights)
    with pytest.raises(UsageError, match="only sample"):
        name_system(str(run), weights="ema", overrides=("train.lr=1",))


def test_a_shared_run_is_named_by_its_recipe_alone(tmp_path: Path, recipe: Recipe, monkeypatch, caplog) -> None:
    write_recipe(recipe, tmp_path / "recipe.yaml")
    monkeypatch.setattr(
        "marcli.sampling.load.fetch_shared",
        lambda identifier, whole: pytest.fail("the weights were fetched") if whole else tmp_path,
    )
    named = name_system("hub:user/run", weights="raw", overrides=["sample.confidence_temperature=4.5"])
    assert (named.name, named.recipe, named.weights) == ("hub:user/run", recipe, "raw")
    assert "sample.confidence_temperature=4.5 changes nothing" in caplog.text


@pytest.mark.parametrize(("weights", "offset"), [("ema", 0.25), ("raw", 0.0)])
def test_a_run_gives_its_weights_recipe_and_tokenizer(tmp_path: Path, recipe: Recipe, weights, offset) -> None:
    run = make_run(tmp_path / "run", recipe)
    system = load_system(str(run), weights=weights, overrides=["sample.steps=2"])
    raw = load_file(run / "weights.safetensors")
    for name, value in system.model.state_dict().items():
        assert torch.equal(value, raw[f"raw.{name}"] + offset)
    assert system.tokenizer.scale == 2.0
    assert system.recipe.sample.steps == 2 and system.recipe.model == recipe.model
    assert system.weights == weights and system.note is None and len(system.weights_sha256) == 64
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in system.model.parameters())
    assert pictures_of(system).shape == (2, 1, 8, 8)


def test_the_weights_file_and_the_newest_run_are_the_same_system(tmp_path: Path, recipe: Recipe, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "runs" / "digits", recipe)
    expected = pictures_of(load_system("runs/digits", weights="ema", overrides=[]))
    for spec in (str(run / "weights.safetensors"), None):
        assert torch.equal(pictures_of(load_system(spec, weights="ema", overrides=[])), expected)


def test_a_weights_file_alone_says_its_architecture_but_not_a_measured_scale(tmp_path: Path, recipe: Recipe) -> None:
    run = make_run(tmp_path / "run", recipe)
    (tmp_path / "alone").mkdir()
    alone = (run / "weights.safetensors").rename(tmp_path / "alone" / "weights.safetensors")
    with pytest.raises(MarcliError, match="measured scale"):
        load_system(str(alone), weights="ema", overrides=[])
    (run / "tokenizer").rename(tmp_path / "alone" / "tokenizer")
    assert load_system(str(alone), weights="ema", overrides=[]).recipe == recipe
    save_file(load_file(alone), alone)  # without the recipe
    with pytest.raises(MarcliError, match="does not say its recipe"):
        load_system(str(alone), weights="ema", overrides=[])


def test_another_tokenizer_is_refused(tmp_path: Path, recipe: Recipe) -> None:
    run = make_run(tmp_path / "run", recipe)
    record = json.loads((run / "tokenizer" / "tokenizer.json").read_text())
    (run / "tokenizer" / "tokenizer.json").write_text(json.dumps({**record, "fingerprint": "0" * 64}))
    with pytest.raises(MarcliError, match="fingerprint"):
        load_system(str(run), weights="ema", overrides=[])


def test_weights_of_another_architecture_are_refused_by_name(tmp_path: Path, recipe: Recipe) -> None:
    run = make_run(tmp_path / "run", recipe)
    tensors = load_file(run / "weights.safetensors")
    del tensors["ema.null_class"]
    tensors["ema.gate"] = torch.zeros(2)
    tensors["ema.backbone.mask_token"] = torch.zeros(1, 1, 8)
    save_file(tensors, run / "weights.safetensors")
    with pytest.raises(MarcliError) as error:
        load_system(str(run), weights="ema", overrides=[])
    for part in ("missing: null_class [1, 32]", "not of this model: gate [2]", "backbone.mask_token [1, 1, 8] where"):
        assert part in str(error.value)


def test_only_sampling_can_be_overridden(tmp_path: Path, recipe: Recipe) -> None:
    run = make_run(tmp_path / "run", recipe)
    with pytest.raises(UsageError, match=r"only sample\.\*"):
        load_system(str(run), weights="ema", overrides=["model.backbone.width=64"])
    with pytest.raises(UsageError, match="at most 16"):
        load_system(str(run), weights="ema", overrides=["sample.steps=17"])


def test_settings_that_act_on_nothing_are_named(tmp_path: Path, recipe: Recipe, caplog) -> None:
    dit = read_recipe(shipped_recipe("digits_dit"), ["model.backbone.width=16", "model.backbone.depth=1"])
    overrides = ["sample.cfg_schedule=linear", "sample.cfg=2", "sample.temperature=0.9", "sample.num=3"]
    for name, run in (("mar", recipe), ("dit", dit)):
        caplog.clear()
        name_system(str(make_run(tmp_path / name, run)), weights="ema", overrides=overrides)
        said = "sample.cfg_schedule=linear changes nothing: the model of digits_dit has no part that it acts on."
        assert caplog.messages == ([said] if name == "dit" else [])


@pytest.mark.parametrize(
    ("backbone", "order", "head", "idle"),
    [
        ("masked", "random", "diffusion", {"kv_cache", "confidence_temperature"}),
        ("masked", "confidence", "cross_entropy", {"kv_cache", "diffusion_steps", "approximate.order"}),
        ("causal", "raster", "l2", {"confidence_temperature", "diffusion_steps", "temperature", "approximate.order"}),
        ("dit", None, None, {"kv_cache", "confidence_temperature", "cfg_schedule", "approximate.order"}),
    ],
)
def test_what_acts_on_which_model(backbone, order, head, idle) -> None:
    keys = {
        "num",
        "steps",
        "cfg",
        "cfg_schedule",
        "temperature",
        "diffusion_steps",
        "kv_cache",
        "confidence_temperature",
    }
    keys |= {"approximate.order", "batch_size"}
    assert {key for key in keys if not acts(tiny.recipe(backbone, order, head), key)} == idle


def test_one_set_of_weights_is_used_and_said(tmp_path: Path, recipe: Recipe) -> None:
    run = make_run(tmp_path / "run", recipe)
    tensors = load_file(run / "weights.safetensors")
    save_file({name: value for name, value in tensors.items() if name.startswith("raw.")}, run / "weights.safetensors")
    system = load_system(str(run), weights="ema", overrides=[])
    assert system.weights == "raw" and "only its raw weights" in system.note


def test_what_is_missing_is_named(tmp_path: Path, recipe: Recipe, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "runs" / "digits", recipe)
    with pytest.raises(UsageError, match="Did you mean runs/digits"):
        load_system("digits", weights="ema", overrides=[])
    with pytest.raises(UsageError, match="Known here: runs/digits, mar-b, mar-l, mar-h"):
        load_system("mar-x", weights="ema", overrides=[])
    with pytest.raises(UsageError, match="not a weights file"):
        load_system(str(run / "recipe.yaml"), weights="ema", overrides=[])
    unfinished = tmp_path / "runs" / "unfinished"
    unfinished.mkdir()
    write_recipe(recipe, unfinished / "recipe.yaml")
    with pytest.raises(UsageError, match="Known here: runs/digits, mar-b"):
        load_system("mar-x", weights="ema", overrides=[])
    content = (run / "weights.safetensors").read_bytes()
    (run / "weights.safetensors").write_bytes(content[:-10])
    with pytest.raises(MarcliError, match=r"weights\.safetensors is not a complete"):
        load_system(str(run), weights="ema", overrides=[])
    (run / "weights.safetensors").unlink()
    with pytest.raises(MarcliError, match="has not ended"):
        load_system(str(run), weights="ema", overrides=[])
    (run / "recipe.yaml").unlink()
    with pytest.raises(UsageError, match=r"no recipe\.yaml"):
        load_system(str(run), weights="ema", overrides=[])


def test_a_file_of_a_checkpoint_is_sent_to_its_run(tmp_path: Path, recipe: Recipe, monkeypatch, caplog) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "runs" / "digits", recipe)
    checkpoint = run / "checkpoints" / "step-00000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    save_file(build_model(recipe).state_dict(), checkpoint / "ema.safetensors")
    with pytest.raises(UsageError, match=r"part of a checkpoint.*give the run, runs/digits"):
        load_system("runs/digits/checkpoints/step-00000010/ema.safetensors", weights="ema", overrides=[])
    monkeypatch.chdir(checkpoint)
    with pytest.raises(UsageError, match=r"give the run, \.\./\.\.;"):
        load_system("ema.safetensors", weights="ema", overrides=[])
    assert "Converting" not in caplog.text


def test_a_shared_run_that_changed_is_refused(tmp_path: Path, recipe: Recipe, monkeypatch) -> None:
    run = make_run(tmp_path / "run", recipe)
    monkeypatch.setattr("marcli.sampling.find.fetch_shared", lambda identifier, whole: run)

    def refused(manifest: object) -> str:
        (run / "manifest.json").write_text(manifest if isinstance(manifest, str) else json.dumps(manifest))
        with pytest.raises(MarcliError) as error:
            load_system("hub:user/run", weights="ema", overrides=[])
        return str(error.value)

    with pytest.raises(MarcliError, match=r"has no manifest\.json"):
        load_system("hub:user/run", weights="ema", overrides=[])
    names = ("recipe.yaml", "weights.safetensors", "tokenizer/tokenizer.json")
    whole = {name: sha256_file(run / name) for name in names}
    (run / "manifest.json").write_text(json.dumps(whole))
    assert load_system("hub:user/run", weights="ema", overrides=[]).name == "hub:user/run"
    for name in names:
        assert f"does not name {name}" in refused({each: sha256 for each, sha256 in whole.items() if each != name})
        assert f"{name} is not the file that was shared" in refused({**whole, name: "0" * 64})
    sha256 = whole["weights.safetensors"]
    assert "lacks codebook" in refused({**whole, "codebook": sha256})
    assert "outside of its folder" in refused({**whole, "../../etc/passwd": sha256})
    assert "outside of its folder" in refused({**whole, "/etc/passwd": sha256})
    assert "not a mapping" in refused("[1]") and "not a mapping" in refused("{")


def test_buffers_that_no_file_holds_are_computed() -> None:
    recipe = read_recipe("debug/backbone_dit", [])
    real = build_model(recipe)
    model = filled_model(recipe, real.state_dict(), source="memory")
    assert len(list(real.buffers())) > 0
    for name, value in real.named_buffers():
        assert torch.equal(model.get_buffer(name), value), name


def test_random_weights_depend_on_the_seed_alone_and_leave_the_global_generator(recipe: Recipe) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    tokenizer = build_tokenizer(recipe, folder=None)
    systems = [random_system(recipe, tokenizer=tokenizer, seed=seed) for seed in (1, 1, 2)]
    first, again, other = (system.model.state_dict() for system in systems)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_what_is_not_named_is_the_newest_run_or_the_published_model(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert default_spec() == "mar-l"
    run = make_run(Path("runs") / "mine", recipe)
    newest, named = (name_system(spec, weights="ema", overrides=()) for spec in (None, str(run)))
    assert newest.name == named.name
