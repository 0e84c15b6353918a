"""Every shipped recipe parses, is built without memory, and a shrunken copy of it learns."""

import re
from operator import attrgetter
from pathlib import Path

import pytest
import torch
import yaml

from marcli.cli.output import count_parameters
from marcli.model.build import build_model
from marcli.recipe.reader import read_recipe, recipe_folder, recipe_text
from marcli.recipe.schema import Recipe
from marcli.runtime.seeding import item_generator

FOLDER = recipe_folder()
RECIPES = sorted(FOLDER.rglob("*.yaml"))
PAPER = [path for path in RECIPES if path.parent.name == "ablations"]
SIZES = {
    "mar_b": 207_924_768,
    "mar_l": 478_326_304,
    "mar_h": 942_403_104,
    "mar_l_512": 480_685_600,
    "ablations/default": 426_357_792,
}
HEADS = {"table3_width256": 1.53e6, "table3_width512": 5.41e6, "table3_width1024": 20.26e6, "table3_width1536": 44.55e6}
TABLE1 = ["ar", "mar_causal", "mar_bidirectional", "mar_default"]


def name_of(path: Path) -> str:
    """Test ids such as `ablations/table1_ar_ce`."""
    return str(path.relative_to(FOLDER).with_suffix(""))


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_parses_and_builds(path: Path) -> None:
    recipe = read_recipe(path, [])
    assert count_parameters(recipe)["total"] > 0
    assert path.read_text().startswith("# ") or path.parent.name == "debug", "a recipe says what it is"
    assert recipe.name == path.stem or path.parent.name == "debug"


def test_names_are_unique() -> None:
    names = [yaml.safe_load(path.read_text())["name"] for path in RECIPES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("name", "parameters"), SIZES.items())
def test_sizes_of_the_paper(name: str, parameters: int) -> None:
    assert count_parameters(read_recipe(FOLDER / f"{name}.yaml", []))["total"] == parameters


@pytest.mark.parametrize(("name", "parameters"), HEADS.items())
def test_head_sizes_of_table_3(name: str, parameters: float) -> None:
    count = count_parameters(read_recipe(FOLDER / "ablations" / f"{name}.yaml", []))["head"]
    assert count == pytest.approx(parameters, rel=5e-3)


def test_size_of_dit() -> None:
    """Table 4 says 675 M."""
    assert count_parameters(read_recipe(FOLDER / "dit_xl_2.yaml", []))["total"] == pytest.approx(675e6, rel=1e-3)


@pytest.mark.parametrize("head", ["ce", "diffusion"])
def test_rows_of_table_1_differ_in_what_the_table_says(head: str) -> None:
    rows = [read_recipe(FOLDER / "ablations" / f"table1_{row}_{head}.yaml", []) for row in TABLE1]
    assert [row.order for row in rows] == ["raster", "random", "random", "random"]
    assert [row.model.backbone.kind for row in rows] == ["causal", "causal", "masked", "masked"]
    assert [row.sampling_steps for row in rows] == [256, 256, 256, 64]
    assert {row.model.head.kind for row in rows} == {"cross_entropy" if head == "ce" else "diffusion"}
    assert {row.train.lr_schedule for row in rows} == {"cosine" if head == "ce" else "constant"}
    totals = [count_parameters(row)["total"] for row in rows]
    assert max(totals) / min(totals) < 1.005


def test_small_table_1_is_a_fair_comparison() -> None:
    """Equal optimizer steps, batch and parameters (to 0.2 %) in all eight rows."""
    rows = [read_recipe(path, []) for path in RECIPES if path.parent.name == "table1"]
    assert {row.name for row in rows} == {f"digits_{row}_{head}" for row in TABLE1 for head in ("ce", "diffusion")}
    assert len({(row.train.steps, row.train.batch_size, row.train.lr, row.data.path) for row in rows}) == 1
    totals = [count_parameters(row)["total"] for row in rows]
    assert max(totals) / min(totals) < 1.002


def test_rows_of_the_paper_are_all_there() -> None:
    names = {path.stem for path in PAPER}
    wanted = {f"table1_{row}_{head}" for row in TABLE1 for head in ("ce", "diffusion")}
    wanted |= {f"table2_{row}" for row in ("vq16", "kl16", "kl8", "consistency", "kl16_imagenet")}
    wanted |= {*HEADS, "table5_on_the_fly", "figure4_diffusion_steps", "figure5_temperature"}
    wanted |= {"figure6_mar_diffusion", "figure6_mar_ce", "figure6_ar_ce", "figure6_dit", "pixels_imagenet64", "l2"}
    assert wanted <= names


@pytest.mark.parametrize("path", PAPER, ids=name_of)
def test_recipes_of_the_paper_say_what_it_reports(path: Path) -> None:
    """With the table or figure, and states only what differs from what it extends."""
    own = yaml.safe_load(path.read_text())
    assert re.match(r"(Table [1-6]|Figure [4-6]|Appendix D),? ", own["reported"])
    assert ("extends" in own and "data" not in own) or path.stem == "pixels_imagenet64"


def shrunken(path: Path) -> Recipe:
    """Return the recipe with narrow, shallow modules and 4x4 tokens; its combination stays."""
    recipe = read_recipe(path, [])
    side = 4 * recipe.latent.stride * recipe.model.patch_size
    changes = [f"data.image_size={side}", "train.batch_size=8", "sample.diffusion_steps=4", "model.backbone.width=16"]
    changes.append("model.backbone.heads=2")
    for name in ("encoder_depth", "decoder_depth", "depth"):
        if hasattr(recipe.model.backbone, name):
            changes.append(f"model.backbone.{name}=1")
    if hasattr(recipe.model.backbone, "dropout"):
        changes.append("model.backbone.dropout=0")
    if hasattr(recipe.model.head, "width"):
        changes += ["model.head.width=16", "model.head.depth=1"]
    changes.append("sample.steps=null")
    return read_recipe(path, changes)


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_shrunken_copy_trains_two_steps(path: Path) -> None:
    """Two steps of AdamW on fixed draws lower the loss of the same batch, and every parameter in use moves."""
    recipe = shrunken(path)
    torch.manual_seed(0)
    model = build_model(recipe)
    generator = item_generator("latents")
    shape = (8, recipe.latent.channels, recipe.latent.size, recipe.latent.size)
    codes = recipe.latent.codebook_size
    latents = torch.randint(codes, shape, generator=generator) if codes else torch.randn(shape, generator=generator)
    labels = torch.arange(8) % recipe.data.num_classes
    num_known = model.num_known(item_generator("known"))
    draws = [model.draw(item_generator("draw", index), num_known) for index in range(8)]
    batch = {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        loss = model(latents, labels, batch, num_known).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[2] < losses[0]


def test_resolved_recipe_reads_back(tmp_path: Path) -> None:
    for path in RECIPES:
        recipe = read_recipe(path, [])
        again = tmp_path / "again.yaml"
        again.write_text(recipe_text(recipe))
        assert read_recipe(again, []) == recipe


MAR = {
    "data.image_size": 256,
    "data.num_classes": 1000,
    "tokenizer.kind": "kl16",
    "tokenizer.scale": 0.2325,
    "num_tokens": 256,
    "token_dim": 16,
    "train.lr": 8e-4,
    "train.batch_size": 2048,
    "train.epochs": 800,
    "train.warmup_epochs": 100,
    "train.lr_schedule": "constant",
    "train.betas": (0.9, 0.95),
    "train.weight_decay": 0.02,
    "train.ema_decay": 0.9999,
    "train.grad_clip": 3.0,
    "train.label_drop": 0.1,
    "model.backbone.mask_ratio_min": 0.7,
    "model.backbone.mask_ratio_std": 0.25,
    "model.backbone.buffer_size": 64,
    "model.backbone.dropout": 0.1,
    "model.head.noise_draws": 4,
    "model.head.schedule": "cosine",
    "sample.steps": 256,
    "sample.diffusion_steps": 100,
    "sample.cfg_schedule": "linear",
    "sample.temperature": 1.0,
}
DIT = {
    "tokenizer.kind": "kl8",
    "tokenizer.scale": 0.18215,
    "num_tokens": 256,
    "train.lr": 1e-4,
    "train.batch_size": 256,
    "train.steps": 7_000_000,
    "train.betas": (0.9, 0.999),
    "train.weight_decay": 0.0,
    "train.ema_decay": 0.9999,
    "train.label_drop": 0.1,
    "model.backbone.schedule": "linear",
    "model.backbone.guidance_channels": 3,
    "sample.diffusion_steps": 250,
    "sample.cfg": 1.5,
    "sample.cfg_schedule": "constant",
}
PUBLISHED = {
    "mar_b": {**MAR, "sample.cfg": 2.9},
    "mar_l": {**MAR, "sample.cfg": 3.0},
    "mar_h": {**MAR, "sample.cfg": 3.2},
    "ablations/default": {**MAR, "train.epochs": 400, "sample.steps": 64, "sample.cfg": 3.0},
    "ablations/table2_kl8": {"tokenizer.kind": "kl8", "num_tokens": 256, "token_dim": 16, "train.epochs": 400},
    "dit_xl_2": DIT,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values(name: str) -> None:
    """Section 4 and appendix B of 2406.11838, the released commands, and DiT's."""
    recipe = read_recipe(FOLDER / f"{name}.yaml", [])
    assert {key: attrgetter(key)(recipe) for key in PUBLISHED[name]} == PUBLISHED[name]
