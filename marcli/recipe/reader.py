"""Recipe files: strict YAML, `extends:`, trailing `key=value`, and one sentence for whatever is wrong.

A file that extends another is merged into it key by key, with three rules that keep it readable: `name` and `reported`
are never inherited, since they say what this file is; a section whose `kind` changes starts afresh, since its keys mean
something else; and of two keys of which only one may be given, the later wins.
"""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from marcli.errors import UsageError
from marcli.recipe.complaints import explain
from marcli.recipe.schema import Recipe
from marcli.recipe.section import Section
from marcli.recipe.tokenizer import Tokenizer
from marcli.recipe.yaml_text import MAX_BYTES, dump_yaml, parse_scalar, parse_yaml

PACKAGE = Path(__file__).resolve().parent.parent
OWN_KEYS = ("name", "reported")
EITHER = {"steps": "epochs", "epochs": "steps", "warmup_steps": "warmup_epochs", "warmup_epochs": "warmup_steps"}


class TokenizerChoice(Section):
    """A tokenizer given by itself, on the command line."""

    tokenizer: Tokenizer


def read_recipe(path: str | Path, overrides: Sequence[str]) -> Recipe:
    """Return the recipe at `path` with `key=value` overrides applied; raises UsageError in one sentence.

    `path` may also name a shipped recipe, as `recipes/digits.yaml` or `digits`, where no such file exists.
    """
    path = find_recipe(path)
    return _validated(merge(_read_tree(path, ()), parse_overrides(overrides)), path)


def recipe_from_text(text: str, *, where: str, overrides: Sequence[str]) -> Recipe:
    """Return the recipe written in `text` (resolved, so without `extends:`); `where` names it in a UsageError."""
    tree = parse_yaml(text, where)
    if not isinstance(tree, dict):
        raise UsageError(f"{where} must be a mapping with keys such as name, data, tokenizer, model and train")
    return _validated(merge(tree, parse_overrides(overrides)), where)


def _validated(tree: dict[str, Any], where: str | Path) -> Recipe:
    try:
        return Recipe.model_validate_json(json.dumps(tree))
    except ValidationError as invalid:
        raise UsageError(f"{where}: {explain(Recipe, invalid)}") from None


def read_tokenizer(settings: dict[str, Any], *, where: str) -> Tokenizer:
    """Return the tokenizer section for `settings`; raises UsageError, its sentence beginning with `where`."""
    try:
        return TokenizerChoice.model_validate_json(json.dumps({"tokenizer": settings})).tokenizer
    except ValidationError as invalid:
        raise UsageError(f"{where}: {explain(TokenizerChoice, invalid)}") from None


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe; `read_recipe` gives it back equal."""
    path.write_text(recipe_text(recipe), encoding="utf-8")


def recipe_text(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML, every key in schema order."""
    return dump_yaml(recipe.model_dump(mode="json"))


def recipe_folder() -> Path:
    """Return the folder of shipped recipes: beside the package in a checkout, inside it in a wheel."""
    inside = PACKAGE / "recipes"
    return inside if inside.is_dir() else PACKAGE.parent / "recipes"


def shipped_recipe(name: str) -> Path:
    """Return the file of a shipped recipe such as `mar_l` or `ablations/table3_width256`; raises UsageError."""
    folder = recipe_folder()
    stem = name.removesuffix(".yaml").removeprefix("recipes/")
    path = folder / f"{stem}.yaml"
    if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
        return path
    names = sorted(str(found.relative_to(folder).with_suffix("")) for found in folder.rglob("*.yaml"))
    close = difflib.get_close_matches(stem, names, n=1)
    top_level = ", ".join(shipped for shipped in names if "/" not in shipped)
    advice = (
        f"did you mean recipes/{close[0]}.yaml?" if close else f"give a file, or a shipped recipe such as {top_level}"
    )
    raise UsageError(f"There is no recipe file {name}: {advice}")


def find_recipe(path: str | Path) -> Path:
    """Return an existing recipe file for what the user typed; raises UsageError."""
    given = Path(path)
    if given.is_dir():
        inside = " (there is a recipe.yaml in it)" if (given / "recipe.yaml").is_file() else ""
        raise UsageError(f"{given} is a folder: give the recipe file itself{inside}")
    return given if given.is_file() else shipped_recipe(given.as_posix())


def _read_text(path: Path) -> str:
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise UsageError(f"{path} is larger than {MAX_BYTES:,} bytes: that is not a recipe")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text: that is not a recipe") from None


def _read_tree(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    """Return the merged tree of `path` and all it extends; `children` are the files that led here."""
    if path.resolve() in children:
        raise UsageError(f"{path}: `extends:` goes round in a circle: remove one of the links")
    tree = parse_yaml(_read_text(path), str(path))
    if not isinstance(tree, dict):
        raise UsageError(f"{path} must be a mapping with keys such as name, data, tokenizer, model and train")
    if "extends" not in tree:
        return tree
    parent = tree.pop("extends")
    if not isinstance(parent, str) or not parent:
        raise UsageError(f"{path}: extends must be the path of one recipe, relative to this file, not {parent!r}")
    parent_path = path.parent / parent
    if not parent_path.is_file():
        raise UsageError(f"{path}: extends names {parent}, but there is no file {parent_path}")
    base = _read_tree(parent_path, (*children, path.resolve()))
    return merge({key: value for key, value in base.items() if key not in OWN_KEYS}, tree)


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` merged in, key by key, by the rules of the module."""
    if "kind" in changes and changes["kind"] != base.get("kind"):
        return changes
    merged = dict(base)
    for key, value in changes.items():
        other = EITHER.get(key)
        if other and value is not None and other not in changes:
            merged.pop(other, None)
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the tree that `train.lr=1e-4 ...` stands for; a repeated key keeps the last. Raises UsageError."""
    tree: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        names = key.split(".")
        if not equals or not all(names):
            raise UsageError(f"{override!r} is not an override: write key=value, for example train.lr=1e-4")
        if key == "extends":
            raise UsageError("extends belongs into a recipe file: it cannot be given as key=value")
        *sections, leaf = names
        section = tree
        for name in sections:
            inner = section.get(name)
            section[name] = section = inner if isinstance(inner, dict) else {}
        is_structure = text.lstrip()[:1] in ("[", "{", '"', "'")
        section[leaf] = parse_yaml(text, override) if is_structure else parse_scalar(text)
    return tree
