"""Strict YAML, extends, overrides, and the sentence for each mistake."""

import subprocess
import sys
from pathlib import Path

import pytest

from marcli.errors import UsageError
from marcli.recipe.complaints import kind_of, sections_in
from marcli.recipe.model import Head
from marcli.recipe.reader import merge, parse_overrides, read_recipe, read_tokenizer, shipped_recipe, write_recipe
from marcli.recipe.yaml_text import dump_yaml, parse_scalar, parse_yaml

HEADS = ", ".join(repr(kind) for section in sections_in(Head) for kind in kind_of(section))

BASE = """
name: base
reported: FID 1.98
data: {path: digits, image_size: 8, channels: 1, num_classes: 10}
tokenizer: {kind: pixels}
model:
  patch_size: 2
  backbone: {kind: masked, width: 32, encoder_depth: 1, decoder_depth: 1, heads: 2}
  head: {kind: diffusion, width: 32, depth: 1}
train: {epochs: 4, warmup_epochs: 1, batch_size: 8, lr: 1e-3}
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A small valid recipe."""
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-2.5e-03", -0.0025),
        (".5", 0.5),
        ("12", 12),
        ("-7", -7),
        ("010", "010"),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("12:30:00", "12:30:00"),
        ("2024-01-02", "2024-01-02"),
        ("on", "on"),
        ("NO", "NO"),
        ("yes", "yes"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("", None),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
    ],
)
def test_plain_scalars(text: str, value: object) -> None:
    parsed = parse_yaml(f"key: {text}", "test")["key"]
    assert parsed == value and type(parsed) is type(value)
    assert parse_scalar(text) == value


@pytest.mark.parametrize(
    "value", ["1e-4", "on", "null", "12", "1.5", "", "a: b", "#", "é", True, None, 1e-5, 1e22, -0.0]
)
def test_dumped_values_come_back(value: object) -> None:
    parsed = parse_yaml(dump_yaml({"key": value}), "test")["key"]
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: key 'a' is given twice"),
        ("a: &x [1]\nb: *x", "aliases (*x) are not allowed"),
        ("a: &x {b: 1}\nc: {<<: *x}", "aliases"),
        ("a: !!python/object/apply:os.system ['true']", "is not allowed"),
        ("a: !!binary aGk=", "is not allowed"),
        ("a: [1, 2", "line 1"),
        ("a: b: c", "line 1, column 5"),
        ("1: a", "key 1 must be text"),
        ("a: \x00", "is not YAML text"),
        ('a: {b: "c\\0d"}', "line 1, column 8: the text holds a null byte, which no path or name can: remove it"),
        ("[" * 20_000, "nested too deeply"),
        ("a: " + "1" * 5_000, "number that cannot be read"),
    ],
)
def test_bad_yaml_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_yaml(text, "bad.yaml")
    assert words in str(caught.value) and str(caught.value).startswith("bad.yaml")


def test_large_and_binary_files_are_refused(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    with large.open("wb") as file:
        file.truncate(100_000_000)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, words in ((large, "larger than 100,000 bytes"), (binary, "not UTF-8 text")):
        with pytest.raises(UsageError, match=words):
            read_recipe(path, [])


def test_round_trip(base: Path, tmp_path: Path) -> None:
    recipe = read_recipe(base, ["train.lr=3e-5", "data.path='1e-4'"])
    write_recipe(recipe, tmp_path / "again.yaml")
    assert read_recipe(tmp_path / "again.yaml", []) == recipe
    assert recipe.train.lr == 3e-5


def test_extends_merges_by_key_and_keeps_its_own_name(base: Path) -> None:
    middle = base.parent / "sub" / "middle.yaml"
    middle.parent.mkdir()
    middle.write_text("extends: ../base.yaml\nname: middle\nmodel: {head: {width: 64}}\ntrain: {lr: 2e-3}\n")
    leaf = base.parent / "leaf.yaml"
    leaf.write_text("extends: sub/middle.yaml\nname: leaf\nmodel: {head: {kind: l2}}\ntrain: {steps: 5}\n")
    recipe = read_recipe(middle, [])
    assert (recipe.model.head.width, recipe.model.head.depth, recipe.train.lr) == (64, 1, 2e-3)
    assert recipe.name == "middle" and recipe.reported is None
    recipe = read_recipe(leaf, [])
    assert recipe.model.head.kind == "l2" and recipe.model.backbone.width == 32
    assert (recipe.train.steps, recipe.train.epochs, recipe.train.warmup_epochs) == (5, None, 1)


def test_name_is_not_inherited(base: Path) -> None:
    child = base.parent / "child.yaml"
    child.write_text("extends: base.yaml\n")
    with pytest.raises(UsageError, match=r"child\.yaml: name is missing"):
        read_recipe(child, [])


def test_extends_in_a_circle_and_to_nowhere(base: Path) -> None:
    for name, target in (("a", "b.yaml"), ("b", "c.yaml"), ("c", "a.yaml"), ("d", "nowhere.yaml"), ("e", "[1]")):
        (base.parent / f"{name}.yaml").write_text(f"name: {name}\nextends: {target}\n")
    for name, words in (("a", "circle"), ("d", "there is no file"), ("e", "must be the path")):
        with pytest.raises(UsageError, match=words):
            read_recipe(base.parent / f"{name}.yaml", [])


def test_merge_leaves_its_arguments_alone() -> None:
    base = {"a": {"b": 1, "c": 2}, "steps": 1}
    assert merge(base, {"a": {"b": 3}, "epochs": 2}) == {"a": {"b": 3, "c": 2}, "epochs": 2}
    assert base == {"a": {"b": 1, "c": 2}, "steps": 1}


def test_overrides_are_typed() -> None:
    assert parse_overrides(["train.lr=1e-4", "data.path=/a b#c: [d]", "x.y.z=null", "x.y.w={a: [1, no]}"]) == {
        "train": {"lr": 1e-4},
        "data": {"path": "/a b#c: [d]"},
        "x": {"y": {"z": None, "w": {"a": [1, "no"]}}},
    }
    assert parse_overrides(["a=1", "a=2"]) == {"a": 2}
    assert parse_overrides(["a=k=v"]) == {"a": "k=v"}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.lrr=1", "train.lrr is not a key of a recipe: did you mean train.lr?"),
        ("trian.lr=1", "trian.lr is not a key of a recipe: did you mean train.lr?"),
        ("lr=1", "lr is not a key of a recipe: did you mean train.lr?"),
        ("head.width=64", "head.width is not a key of a recipe: did you mean model.head.width?"),
        ("model.head.wdth=3", "did you mean model.head.width?"),
        ("model.backbone.depth=3", "only goes with model.backbone.kind 'causal' or 'dit'"),
        ("tokenizer.codebook_size=3", "tokenizer.codebook_size only goes with tokenizer.kind 'kmeans'"),
        ("model.head.kind=difusion", f"model.head.kind is 'difusion': choose {HEADS}"),
        ("model.head.width=abc", "model.head.width must be a whole number, not 'abc'"),
        ('data.path="a\\0b"', "the text holds a null byte"),
        ("model.head.width=4", "model.head.width must be at least 8, not 4"),
        ("model.head.width=10000000", "model.head.width must be at most 65536, not 10000000"),
        ("model.backbone.encoder_depth=1000000", "model.backbone.encoder_depth must be at most 1000, not 1000000"),
        ("model.backbone.mlp_ratio=1e12", "model.backbone.mlp_ratio must be at most 64"),
        ("train.steps=1e3", "train.steps must be a whole number, not 1000.0"),
        ("train.lr=-1", "train.lr must be above 0"),
        ("data.image_size=1000000000000", "tokens, more than 1,048,576: choose a smaller size"),
        ("train.lr=nan", "train.lr must be a finite number"),
        ("train.lr=inf", "train.lr must be a finite number"),
        ("train.lr=", "train.lr must be a number, not None"),
        ("train.seed=true", "train.seed must be a whole number, not True"),
        ("data.horizontal_flip=no", "data.horizontal_flip must be true or false, not 'no'"),
        ("data.path=7", "data.path must be text (quote it), not 7"),
        ("data.channels=2", "data.channels must be one of 1 or 3, not 2"),
        ("tokenizer.kind=kl8", "data.channels is 1, but tokenizer.kind 'kl8' takes colour alone: set data.channels=3"),
        ("train.betas=[0.9, x]", "train.betas[1] must be a number"),
        ("train.betas=[0.9, 1.5]", "train.betas[1] must be below 1"),
        ("train.betas=[0.9]", "train.betas[1] is missing"),
        ("train.trackers=[foo]", "train.trackers[0] must be one of 'tensorboard' or 'wandb'"),
        ("train=5", "train must be a mapping of keys, not 5"),
        ("name=../up", "name is '../up': use letters"),
        ("sample.steps=17", "sample.steps is 17, but an image has 16 tokens"),
        ("noequals", "'noequals' is not an override: write key=value"),
        ("a..b=1", "is not an override"),
        ("extends=x", "extends belongs into a recipe file"),
    ],
)
def test_mistakes_become_one_sentence(base: Path, override: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_recipe(base, [override])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value) and "validation error" not in str(caught.value)


def test_missing_key_says_what_it_means(base: Path) -> None:
    base.write_text(BASE.replace(", lr: 1e-3", ""))
    with pytest.raises(UsageError, match=r"train\.lr is missing \(peak learning rate of AdamW\): add it"):
        read_recipe(base, [])
    base.write_text(BASE.replace("kind: diffusion, ", ""))
    with pytest.raises(UsageError, match=rf"model\.head\.kind is missing: choose {HEADS}"):
        read_recipe(base, [])


def test_near_miss_of_a_recipe_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"did you mean recipes/digits\.yaml\?"):
        read_recipe("recipes/digts.yaml", [])
    with pytest.raises(UsageError, match="is a folder"):
        read_recipe(tmp_path, [])
    assert shipped_recipe("digits").name == "digits.yaml"
    with pytest.raises(UsageError):
        shipped_recipe("../pyproject")


def test_reading_needs_neither_torch_nor_numpy(base: Path) -> None:
    code = (
        "import sys; from marcli.recipe.reader import read_recipe; read_recipe(sys.argv[1], []);"
        "print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(base)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_tokenizer_by_itself() -> None:
    assert read_tokenizer({"kind": "pixels", "scale": 2}, where="--tokenizer").scale == 2
    for settings, words in (({"kind": "foo"}, "choose 'pixels'"), ({"kind": "kmeans", "codes": 1}, "is not a key")):
        with pytest.raises(UsageError, match=f"^--tokenizer: .*{words}"):
            read_tokenizer(settings, where="--tokenizer")
