"""The shape of the package: which part may import which, what stays light, and how long a file may be."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from marcli.bench.cost import plain_cost
from marcli.bench.points import family_of
from marcli.bench.training_cost import training_flops
from marcli.model.build import build_model
from marcli.pretrained.card import described
from marcli.recipe import model as kinds
from marcli.recipe.complaints import kind_of, sections_in
from marcli.recipe.reader import read_recipe, recipe_folder
from marcli.runtime.skeleton import skeletons
from tests.model.tiny import COMBINATIONS

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "marcli").rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}

# Each part may import itself and what stands to its right in a lower group; parts of one group are strangers.
ORDER = [
    {"__main__"}, {"cli"}, {"bench"}, {"training"}, {"sampling"}, {"metrics"}, {"tokenizer", "model"},
    {"data", "pretrained"}, {"runtime"}, {"recipe"}, {"errors", "__init__"},
]  # fmt: skip
INSIDE_MODEL = [
    {"build"},
    {"autoregressive"},
    {"backbone", "head"},
    {"process", "order", "grid"},
    {"layers"},
]
MODEL_MAY_SEE = ("marcli.model", "marcli.recipe", "marcli.errors")


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield every module of this package that `path` imports, and whether it happens at import time."""
    tree = ast.parse(path.read_text())
    top_level = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in names]
        else:
            continue
        yield from ((name, id(node) in top_level) for name in names if name.split(".")[0] == "marcli")


def rank(name: str, order: list[set[str]], depth: int) -> int:
    """Return the place of module `name` in `order`, 0 at the top; `depth` says which part of its name counts."""
    parts = name.split(".")
    part = parts[depth] if len(parts) > depth else "__init__"
    places = [place for place, group in enumerate(order) if part in group]
    assert places, f"{name}: {part!r} has no place in the order of the package; give it one"
    return places[0]


def wrong_imports(order: list[set[str]], depth: int, importers: dict[str, Path]) -> list[str]:
    """Return the imports that point up or sideways."""
    wrong = []
    for module, path in importers.items():
        for imported, _ in imports(path):
            if depth == 2 and not imported.startswith("marcli.model."):
                continue
            same = module.split(".")[: depth + 1] == imported.split(".")[: depth + 1]
            if not same and rank(imported, order, depth) <= rank(module, order, depth):
                wrong.append(f"{module} imports {imported}")
    return wrong


def test_imports_point_down() -> None:
    assert wrong_imports(ORDER, 1, MODULES) == []


def test_imports_point_down_inside_the_model() -> None:
    inside = {name: path for name, path in MODULES.items() if name.startswith("marcli.model.")}
    assert wrong_imports(INSIDE_MODEL, 2, inside) == []


def test_the_model_knows_no_files_ranks_or_devices() -> None:
    for module, path in MODULES.items():
        if module.startswith("marcli.model"):
            assert [name for name, _ in imports(path) if not name.startswith(MODEL_MAY_SEE)] == [], module
            assert "accelerate" not in path.read_text(), module


def test_click_is_never_imported() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "click" for name in names), path


def test_command_line_and_recipes_are_light() -> None:
    """Importing them loads no package that takes longer than a blink."""
    light = ["marcli.cli.app", *(name for name in MODULES if name.startswith("marcli.recipe"))]
    light += ["marcli.runtime.launch", "marcli.runtime.rundir", "marcli.runtime.progress"]
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "heavy = 'torch numpy accelerate datasets diffusers timm sklearn matplotlib PIL pyarrow cleanfid'.split()\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *light], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_fits_in_the_head(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text)), "a module says what is special about it"
    if path.name == "__init__.py" and path.parent.name != "marcli":
        body = ast.parse(text).body[1:]
        assert all(isinstance(node, ast.ImportFrom | ast.Assign) for node in body), "re-exports at most"


def test_no_drawers_for_odds_and_ends() -> None:
    names = {part for module in MODULES for part in module.split(".")}
    assert not names & {"utils", "util", "common", "helpers", "misc"}


@pytest.mark.parametrize("axis", ["head", "backbone"])
def test_a_new_kind_is_complete(axis: str) -> None:
    """A new head or backbone: one class in the recipe, one file, one case in build and in the bench's cost, one debug
    recipe, and a place among the combinations that the engines are tested with."""
    kinds_in_schema = {kind for section in sections_in(getattr(kinds, axis.title())) for kind in kind_of(section)}
    files = {path.stem for path in (ROOT / "marcli" / "model" / axis).glob("*.py")} - {"__init__", "base", "denoiser"}
    recipes = {path.stem.removeprefix(f"{axis}_") for path in (recipe_folder() / "debug").glob(f"{axis}_*.yaml")}
    assert files == kinds_in_schema
    assert recipes == kinds_in_schema
    assert {kind for combination in COMBINATIONS for kind in combination} >= kinds_in_schema
    for kind in kinds_in_schema:
        recipe = read_recipe(recipe_folder() / "debug" / f"{axis}_{kind}.yaml", [])
        assert getattr(recipe.model, axis).kind == kind
        with skeletons():
            model = build_model(recipe)
        built = getattr(model, axis, model)  # a DiT is its own model
        assert type(built).__module__ == f"marcli.model.{axis}.{kind}"
        assert plain_cost(recipe, batch_size=1).flops > 0 and training_flops(recipe) > 0
        assert family_of(recipe) and described(recipe)
