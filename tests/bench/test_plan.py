"""Which points are measured, and what is refused before anything is loaded."""

import json
import subprocess
import sys

import pytest

from marcli.bench.plan import parse_counts, parse_presets, parse_sweeps, plan, same_settings
from marcli.bench.points import point_of
from marcli.bench.request import known_recipe, parse_engines
from marcli.cli.app import run
from marcli.errors import UsageError
from marcli.recipe.reader import read_recipe, write_recipe

MASKED, CAUSAL, DIT = "debug/head_diffusion", "debug/backbone_causal", "debug/backbone_dit"


def planned(spec, *, steps=None, dit_steps=None, sweep=None, presets=(), each_switch=False, overrides=()):
    return plan(
        read_recipe(spec, overrides),
        steps=steps,
        dit_steps=dit_steps,
        sweep=sweep or {},
        presets=presets,
        each_switch=each_switch,
        batch_size=5,
    )


def test_default_steps_are_the_papers_where_they_fit():
    variants, notes = planned("mar_l")
    assert [variant.recipe.sample.steps for variant in variants] == [8, 16, 32, 64, 128]
    assert notes == []
    assert {variant.recipe.sample.batch_size for variant in variants} == {5}


def test_default_steps_beyond_the_tokens_are_left_out_with_a_line():
    variants, notes = planned(MASKED)
    assert [variant.recipe.sample.steps for variant in variants] == [1, 2, 4, 8, 16]
    assert notes == ["debug_head_diffusion: 32, 64, 128 AR steps left out, an image has 16 tokens"]


def test_steps_beyond_the_tokens_are_refused_when_asked_for():
    with pytest.raises(UsageError, match="--steps 32 is more than the 16 tokens"):
        planned(MASKED, steps=(8, 32))


def test_causal_has_one_point_and_dit_its_own_steps():
    assert [each.recipe.sampling_steps for each in planned(CAUSAL, steps=(4,))[0]] == [16]
    assert [each.recipe.sample.diffusion_steps for each in planned(DIT, steps=(4,))[0]] == [50, 75, 150, 250]
    assert [each.recipe.sample.diffusion_steps for each in planned(DIT, dit_steps=(7,))[0]] == [7]


def test_sweeps_cross_and_keep_the_recipes_steps():
    sweep = parse_sweeps(["temperature=0.9,1.0", "sample.cfg=1,2"])
    variants, notes = planned(MASKED, sweep=sweep)
    assert [dict(each.swept) for each in variants] == [{"temperature": t, "cfg": c} for t in (0.9, 1.0) for c in (1, 2)]
    assert {each.recipe.sample.steps for each in variants} == {4}
    assert [each.is_default for each in variants] == [False, False, False, True]  # temperature 1, cfg 2
    assert notes == []


def test_what_does_not_apply_is_not_swept():
    sweep = parse_sweeps(["kv_cache=true,false"])
    assert [each.recipe.sample.kv_cache for each in planned(CAUSAL, sweep=sweep)[0]] == [True, False]
    variants, notes = planned(MASKED, sweep=sweep)
    assert len(variants) == 1
    assert notes == ["debug_head_diffusion: kv_cache does not apply to it and is not swept"]
    for key, takes in (("head_guidance_refresh", 2), ("guidance_refresh", 1)):  # the second acts on tokens
        assert len(planned(CAUSAL, sweep=parse_sweeps([f"approximate.{key}=null,2"]))[0]) == takes


@pytest.mark.parametrize(
    ("override", "sweep", "variants"),
    [
        ("model.backbone.decoder_depth=1", "approximate.feature_refresh=null,2", 1),
        ("model.backbone.decoder_depth=2", "approximate.feature_refresh=null,2", 2),
        ("model.order=raster", "approximate.order=null,checkerboard", 1),
        ("model.order=random", "approximate.order=null,checkerboard", 2),
        ("model.head={kind: l2}", "temperature=0.9,1", 1),
    ],
)
def test_a_part_that_is_not_there_is_not_swept(override, sweep, variants):
    assert len(planned(MASKED, sweep=parse_sweeps([sweep]), overrides=[override])[0]) == variants


def test_a_shallow_decoder_leaves_out_the_preset_that_needs_a_deeper_one():
    variants, notes = planned(MASKED, presets=("lazy", "turbo"), overrides=["model.backbone.decoder_depth=1"])
    assert {each.recipe.sample.approximate.preset for each in variants} == {None, "turbo"}
    assert notes[1:] == ["debug_head_diffusion: preset lazy does not apply to it"]


def test_default_steps_of_a_checkerboard_begin_with_one_per_colour():
    variants, _ = planned(MASKED, overrides=["sample.approximate.order=checkerboard"])
    assert [variant.recipe.sample.steps for variant in variants] == [2, 4, 8, 16]


def test_presets_stand_beside_the_exact_points():
    variants, notes = planned(MASKED, steps=(4, 8), presets=("disa", "swift"))
    assert [each.recipe.sample.approximate.preset for each in variants] == [
        None,
        None,
        "disa",
        "disa",
        "swift",
        "swift",
    ]
    assert [each.recipe.sample.steps for each in variants] == [4, 8] * 3
    assert variants[2].recipe.sample.diffusion_steps == 50
    assert notes == []
    points = points_of(variants)
    assert [point.engine_class for point in points] == ["lossless"] * 2 + ["approximate"] * 4
    assert [point.engine for point in points] == ["fast"] * 2 + ["fast + disa"] * 2 + ["fast + swift"] * 2
    assert len({point.key for point in points}) == 6


def test_presets_are_taken_apart():
    deep = ["model.backbone.decoder_depth=2"]
    variants, _ = planned(MASKED, presets=("disa", "turbo", "lazy"), each_switch=True, overrides=deep)
    assert [point.engine.removeprefix("fast") for point in points_of(variants)] == [
        "", " + final_diffusion_steps 5", " + final_diffusion_steps 6", " + solver dpm++2m", " + guidance_from 1.1",
        " + guidance_refresh 3", " + final_diffusion_steps 10", " + guidance_refresh 9", " + head_guidance_refresh 4",
        " + feature_refresh 9", " + disa", " + turbo", " + lazy",
    ]  # fmt: skip
    own = read_recipe(MASKED, []).sample.diffusion_steps
    counts = [each.recipe.sample.diffusion_steps for each in variants]
    assert counts == [own, 50, 16, 16, own, own, 40, own, own, own, 50, 16, 40], "a solver comes with its few steps"
    assert {each.recipe.sampling_steps for each in variants} == {read_recipe(MASKED, []).sampling_steps}
    of_ar, _ = planned(CAUSAL, presets=("lazy",), each_switch=True)
    assert [point.engine for point in points_of(of_ar)] == [
        "fast", "fast + final_diffusion_steps 10", "fast + head_guidance_refresh 4",
    ]  # fmt: skip
    assert len(planned(DIT, presets=("lazy",), each_switch=True)[0]) == 1


def test_presets_leave_systems_alone_that_cannot_take_them():
    variants, notes = planned(DIT, presets=("disa",))
    assert len(variants) == 4
    assert notes == ["debug_backbone_dit: preset disa does not apply to it"]
    assert len(planned(CAUSAL, presets=("disa", "turbo"))[0]) == 2  # annealing needs a diffusion head alone


def test_single_switches_are_swept():
    sweep = parse_sweeps(["approximate.solver=ancestral,ddim", "approximate.final_diffusion_steps=null,2"])
    variants, _ = planned(MASKED, sweep=sweep)
    switches = [each.recipe.sample.approximate for each in variants]
    assert [(each.solver, each.final_diffusion_steps) for each in switches] == [
        ("ancestral", None), ("ancestral", 2), ("ddim", None), ("ddim", 2),
    ]  # fmt: skip


def points_of(variants):
    settings = {"system": "x", "engine": "fast", "engine_class": "lossless", "is_default": False, "weights": "ema"}
    return [point_of(each.recipe, swept=each.swept, **settings) for each in variants]


def test_a_switch_swept_beside_a_preset_is_named_in_the_point():
    sweep = parse_sweeps(["approximate.final_diffusion_steps=null,2,5"])
    points = points_of(planned(MASKED, presets=("disa",), sweep=sweep)[0])
    assert len({point.key for point in points}) == len(points) == 6
    assert [point.engine for point in points] == [
        "fast", "fast + final_diffusion_steps 2", "fast + final_diffusion_steps 5",
        "fast", "fast + disa, final_diffusion_steps 2", "fast + disa",
    ]  # fmt: skip
    assert "max_timestep 950" in points[3].key  # what a preset leaves behind when its switch is off


@pytest.mark.parametrize(
    "override",
    ["cfg_schedule=constant", "max_timestep=700", "clip_denoised=2.5", "confidence_temperature=1", "cfg=1.5",
     "temperature=0.9", "diffusion_steps=7", "steps=3", "batch_size=9", "approximate.solver=ddim"],
)  # fmt: skip
def test_all_that_changes_time_or_quality_is_in_the_key(override):
    settings = {"system": "x", "engine": "fast", "engine_class": "lossless", "swept": (), "is_default": False}
    usual = point_of(read_recipe(MASKED, []), **settings, weights="ema")
    assert point_of(read_recipe(MASKED, [f"sample.{override}"]), **settings, weights="ema").key != usual.key
    assert point_of(read_recipe(MASKED, []), **settings, weights="raw").key != usual.key


def test_the_same_setting_is_planned_once():
    assert len(planned(MASKED, sweep=parse_sweeps(["temperature=1,1.0"]))[0]) == 1
    again = ["sample.diffusion_steps=50", "sample.max_timestep=950", "sample.approximate.final_diffusion_steps=5"]
    again.append("sample.approximate.preset=disa")
    assert len(planned(MASKED, steps=(4,), presets=("disa",), overrides=again)[0]) == 1
    usual, cached, uncached = (read_recipe(CAUSAL, [f"sample.kv_cache={value}"]) for value in ("null", "true", "false"))
    assert same_settings(usual, cached) and not same_settings(usual, uncached)


def test_a_run_called_as_a_recipe_is_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    with pytest.raises(UsageError, match="digits is a folder"):
        known_recipe("./digits", [])
    write_recipe(read_recipe(MASKED, []), tmp_path / "digits" / "recipe.yaml")
    recipe, is_random = known_recipe("digits", [])
    assert (recipe.name, is_random) == ("debug_head_diffusion", False)
    assert known_recipe("digits_ar", [])[1]


def test_names_are_checked_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments, words in (
        (["nosuch"], "There is no run, weights file or published name nosuch"),
        (["digits", "recipes/digits.yaml"], "is named twice"),
        (["mar-b", "mar-b"], "is named twice"),
        (["--compare", "digits_ar"], "no run under runs/ to compare it with"),
    ):
        assert run(["bench", *arguments, "--dry-run"]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mine", "train.lr=1"], "train.lr=1: only sample.* can be changed for trained weights"),
        (["digits", "digits_ar", "--quality"], "--quality needs trained weights, and those of a recipe such as digits"),
        (["mine", "--no-quality", "--reference", "x"], "--reference is for quality"),
        (["mine", "--no-quality", "--features", "pixels"], "--features is for quality"),
        (["mine", "--each-switch"], "none is named: add --fast-preset lazy"),
        (["mine", "--no-quality", "--inception", "x.pt"], "--inception is for quality"),
    ],
)
def test_options_that_could_not_act_are_refused(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    write_recipe(read_recipe(MASKED, []), tmp_path / "mine" / "recipe.yaml")
    assert run(["bench", *arguments, "--dry-run"]) == 2
    assert words in capsys.readouterr().err


def test_compare_without_a_run_stands_beside_the_newest_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    write_recipe(read_recipe(MASKED, ["name=mine"]), folder / "recipe.yaml")
    (folder / "weights.safetensors").touch()
    assert run(["bench", "--compare", CAUSAL, "--dry-run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(dict.fromkeys(point["recipe"] for point in shown["points"])) == ["mine", "debug_backbone_causal"]
    assert shown["out"] == "runs/mine/bench"


def test_approximations_are_named_before_they_are_measured(capsys):
    switch = ["--sweep", "approximate.guidance_refresh=3,9"]
    assert run(["bench", "digits", "--fast-preset", "lazy", *switch, "--dry-run", "--json"]) == 0
    *lines, _, last = capsys.readouterr().out.splitlines()
    assert [line.split(": ", 1)[1].rpartition(",")[0] for line in lines] == [
        "16 steps, approximate: guidance_refresh 3",
        "16 steps, approximate: guidance_refresh 9",
        "16 steps, approximate: lazy, guidance_refresh 3",
        "16 steps, approximate: lazy",
    ]
    named = [point["approximations"] for point in json.loads(last)["points"]]
    assert named == ["guidance_refresh 3", "guidance_refresh 9", "lazy, guidance_refresh 3", "lazy"]


def test_an_uncounted_decoder_is_said(capsys):
    assert run(["bench", "ablations/table2_consistency", "--steps", "8", "--dry-run", "--json"]) == 0
    line, *_, last = capsys.readouterr().out.splitlines()
    assert "GFLOP + tokenizer per image" in line
    assert json.loads(last)["points"][0]["unpriced"] == ["tokenizer"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: parse_counts("8,x", "--steps"), "--steps '8,x' is not a list"),
        (lambda: parse_counts("0", "--steps"), "whole numbers"),
        (lambda: parse_sweeps(["temperature"]), "has no values"),
        (lambda: parse_sweeps(["steps=1,2"]), "use --steps"),
        (lambda: parse_sweeps(["heat=1,2"]), "choose from cfg"),
        (lambda: parse_sweeps(["cfg=1", "sample.cfg=2"]), "--sweep cfg is given twice"),
        (lambda: parse_presets(["warp"]), "--fast-preset 'warp' does not exist: choose disa"),
        (lambda: parse_engines("plain,quick"), "'quick' is not an engine"),
        (lambda: planned(MASKED, sweep={"cfg": (0.5,)}), r"sample\.cfg"),
        (lambda: planned(MASKED, sweep={"temperature": ("hot",)}), r"sample\.temperature"),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(UsageError, match=words):
        call()


def test_planning_needs_no_torch():
    code = (
        "import sys, json; from marcli.bench import baseline, cost, plan, points, request;"
        "print(json.dumps('torch' in sys.modules))"
    )
    assert json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) is False
