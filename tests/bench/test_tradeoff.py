"""The bench from recipes to files, and its parts against what they promise."""

import dataclasses
import errno
import itertools
import json

import pytest
import torch
from safetensors.torch import save_file

from marcli.bench.baseline import FORMAT, judged_images
from marcli.bench.budget import affordable, fit_to_time, fitting_batch_size, judged_num, rounds_of
from marcli.bench.clock import Memory
from marcli.bench.entries import Entry, load_entries, shortly_named
from marcli.bench.measure import Contender, Extent, measure_shares, run_rounds
from marcli.bench.plan import Variant, vary
from marcli.bench.points import point_of
from marcli.bench.request import Planned
from marcli.bench.roofline import Machine
from marcli.bench.stand_in import random_tokenizer, stand_in_system
from marcli.bench.tradeoff import engines_for
from marcli.cli.app import run
from marcli.errors import UsageError
from marcli.metrics.features import pixel_extractor
from marcli.metrics.frechet import frechet_distance
from marcli.metrics.pictures import open_pictures
from marcli.metrics.statistics import gaussian_from_features
from marcli.recipe.reader import read_recipe, write_recipe
from marcli.sampling.engine.build import build_engine
from marcli.sampling.engine.features import CachedBackbone
from marcli.sampling.generate import generate
from marcli.tokenizer.build import save_tokenizer
from tests.bench.asked import plan_request

SPECS = {
    "masked": "debug/head_diffusion",
    "causal": "debug/backbone_causal",
    "dit": "debug/backbone_dit",
    "codes": "debug/head_cross_entropy",
}


def contender(spec: str, engine: str = "plain", overrides=()) -> Contender:
    recipe = read_recipe(spec, ["sample.batch_size=2", *overrides])
    system = stand_in_system(recipe, seed=0)
    built = build_engine(system, name=engine, device=torch.device("cpu"), precision="fp32")
    point = point_of(
        recipe, system="x", engine=built.name, engine_class="plain", swept=(), is_default=True, weights="ema"
    )
    return Contender(point, built, recipe, system.tokenizer, weights={}, tally=None)


@pytest.mark.parametrize("engine", ["plain", "auto"])
@pytest.mark.parametrize("kind", SPECS)
def test_shares_cover_the_parts(kind, engine):
    each = contender(SPECS[kind], engine)
    before = dict(vars(each.tokenizer))
    measure_shares(each, seed=0)
    parts = {"dit": {"decoder", "tokenizer"}, "causal": {"decoder", "head", "tokenizer"}}
    assert set(each.shares) == parts.get(kind, {"encoder", "decoder", "head", "tokenizer"})
    assert all(share > 0 for share in each.shares.values())
    assert sum(each.shares.values()) <= 1  # how much lies between the parts depends on what else the machine does
    assert vars(each.tokenizer) == before


def test_shares_cover_the_parts_of_an_approximation_too():
    before, deeper = dict(vars(CachedBackbone)), ["model.backbone.decoder_depth=2", "sample.steps=6"]
    each = contender(SPECS["masked"], "auto", ["sample.approximate.feature_refresh=3", *deeper])
    measure_shares(each, seed=0)
    assert set(each.shares) == {"encoder", "decoder", "head", "tokenizer"}
    plain = contender(SPECS["masked"], "auto", deeper)
    measure_shares(plain, seed=0)
    assert each.shares["decoder"] > 0.3 * plain.shares["decoder"]
    assert dict(vars(CachedBackbone)) == before


def test_a_recorded_transformer_is_all_decoder():
    cached = ["sample.cfg=1", "sample.approximate.feature_refresh=3", "model.backbone.decoder_depth=2"]
    for overrides in ([], cached):
        each = contender(SPECS["masked"], "auto", overrides)
        each.engine.record(lambda function: (lambda: None, function()))
        for _ in range(2):
            each.batch(range(2), 0)
        measure_shares(each, seed=0)
        assert set(each.shares) == {"decoder", "head", "tokenizer"} and each.shares["decoder"] > 0.02


def test_first_round_is_not_timed_and_time_ends_all_points_alike():
    pair = [contender(SPECS["masked"]), contender(SPECS["dit"])]
    run_rounds(pair, Extent(rounds=4, seconds=None, seed=0, num=100), lambda: None)
    assert [len(each.seconds) for each in pair] == [3, 3]
    assert all(each.peak.peak_bytes > 0 for each in pair)
    pair = [contender(SPECS["masked"]), contender(SPECS["dit"])]
    run_rounds(pair, Extent(rounds=50, seconds=0.0, seed=0, num=100), lambda: None)
    assert [len(each.seconds) for each in pair] == [1, 1]


class Counted:
    """A tally that only counts."""

    count = 0

    def add(self, images):
        self.count += len(images)


def test_exactly_so_many_pictures_are_judged_whatever_the_batch_whose_time_they_share(monkeypatch):
    monkeypatch.setattr("marcli.bench.measure.timed", lambda run, device: run() or 6.0)
    each = contender(SPECS["masked"])
    each.tally = Counted()
    run_rounds([each], Extent(rounds=3, seconds=None, seed=0, num=3), lambda: None)
    assert each.tally.count == 3
    assert each.seconds == [6.0 / each.point.batch_size] * 2 and each.point.batch_size > 1


def test_time_is_the_median_and_memory_that_of_the_system_alone():
    each = contender(SPECS["masked"])
    each.seconds, each.peak, each.weights = [1.0, 2.0, 9.0], Memory(1000, "resident"), {1: 60, 2: 40}
    measured = each.measurement(held_bytes=350)  # of which 250 are another system's and the judge's
    assert (measured.seconds_per_image, measured.fastest, measured.slowest) == (2.0, 1.0, 9.0)
    assert measured.peak_memory_bytes == 750


def test_a_baseline_decides_what_is_left_out_and_never_the_clock(monkeypatch):
    recipe, machine = read_recipe(SPECS["masked"], []), Machine(flops_per_second=1.0, bytes_per_second=1.0)
    variants = [Variant(vary(recipe, steps=steps), (), False) for steps in (1, 2, 4, 8)]
    entries = [Entry(stand_in_system(recipe, seed=0), variants, True)]
    gated = frozenset((recipe.name, steps, 10) for steps in (2, 8))
    asked = plan_request(specs=(SPECS["masked"],), batch_size=4, gated=gated)
    (entry,), notes = fit_to_time(entries, asked, machine)
    assert [each.recipe.sample.steps for each in entry.variants] == [2, 8]
    assert len(notes) == 2 and "the baseline does not have them" in notes[0]
    other = dataclasses.replace(asked, gated=frozenset({("another", 2, 10)}))
    assert len(fit_to_time(entries, other, machine)[0][0].variants) == 4
    with pytest.raises(UsageError, match="none of the points that would be measured: give the --steps"):
        fit_to_time(entries, dataclasses.replace(asked, gated=frozenset({(recipe.name, 3, 10)})), machine)


def test_what_is_asked_for_is_measured_however_long_it_takes():
    recipe, machine = read_recipe(SPECS["masked"], []), Machine(flops_per_second=1.0, bytes_per_second=1.0)
    variants = [Variant(vary(recipe, cfg=cfg), (("cfg", cfg),), False) for cfg in (1.0, 2.0, 3.0)]
    entries = [Entry(stand_in_system(recipe, seed=0), variants, True)]
    usual = plan_request(specs=(SPECS["masked"],), batch_size=4)
    assert len(fit_to_time(entries, usual, machine)[0][0].variants) == 2
    for asked in ({"sweep": {"cfg": (1.0, 2.0, 3.0)}}, {"steps": (4,)}, {"dit_steps": (4,)}):
        (entry,), notes = fit_to_time(entries, dataclasses.replace(usual, **asked), machine)
        assert [each.recipe.sample.cfg for each in entry.variants] == [1.0, 2.0, 3.0] and notes == []
    (entry,), notes = fit_to_time(entries, dataclasses.replace(usual, batch_size=None), machine)
    assert [each.recipe.sample.batch_size for each in entry.variants] == [1, 1]
    assert notes[0] == f"Batches of 1 instead of {recipe.sample.batch_size}, so that all points fit into the time"


def test_what_came_with_its_recipe_alone_is_planned_when_it_is_loaded(monkeypatch):
    recipe = read_recipe(SPECS["masked"], [])
    asked = dataclasses.replace(plan_request(specs=("hub:a/b",), batch_size=4), steps=(2, 8))
    monkeypatch.setattr("marcli.bench.entries.load_system", lambda spec, **_: stand_in_system(recipe, seed=0))
    (entry,), _ = load_entries([Planned("hub:a/b", None, False)], asked)
    assert [each.recipe.sample.steps for each in entry.variants] == [2, 8]


def test_a_system_without_a_fast_engine_is_measured_with_those_it_has():
    dit, masked = (stand_in_system(read_recipe(SPECS[kind], []), seed=0) for kind in ("dit", "masked"))
    cpu = torch.device("cpu")
    assert engines_for(dit, ["plain", "fast"], cpu) == (["plain"], ["fast"])
    assert engines_for(dit, ["fast"], cpu) == (["plain"], ["fast"])
    assert engines_for(dit, ["auto"], cpu) == (["auto"], [])
    assert engines_for(masked, ["plain", "fast"], cpu) == (["plain", "fast"], [])


@pytest.mark.parametrize(
    ("minutes", "num", "seconds"), [(None, None, 240), (None, 100, None), (3, 100, 180), (0, None, None), (0.5, 10, 30)]
)
def test_time_limit(minutes, num, seconds):
    asked = dataclasses.replace(plan_request(specs=(), batch_size=None), minutes=minutes, num=num)
    assert asked.seconds == seconds


def test_a_baseline_decides_how_many_pictures_are_judged():
    gate = dataclasses.replace(plan_request(specs=(), batch_size=None), gated_num=1500)
    assert (judged_num(gate), gate.seconds, gate.seconds_of_rounds) == (1500, 240, None)
    assert rounds_of(gate, 64, judged=True) == 24 and rounds_of(gate, 64, judged=False) == 6
    shorter = dataclasses.replace(gate, minutes=3, num=100)
    assert (judged_num(shorter), shorter.seconds_of_rounds) == (100, 180)
    assert judged_num(dataclasses.replace(gate, gated_num=None)) == 2000
    points = [{"fid": None, "fid_images": None}, {"fid": 3.0, "fid_images": 48}]
    assert judged_images({"points": points}) == 48 and judged_images({"points": points[:1]}) is None


def test_no_round_starts_that_would_end_too_late(monkeypatch):
    clock = itertools.count(0.0, 5.0)  # read before all, and around every round
    monkeypatch.setattr("marcli.bench.measure.time.monotonic", lambda: next(clock))
    each = contender(SPECS["masked"])
    run_rounds([each], Extent(rounds=50, seconds=24.0, seed=0, num=9), lambda: None)
    assert len(each.seconds) == 1  # the second round ends at 20, and one more would end at 25


def test_engine_under_other_settings_is_the_engine_built_for_them():
    recipe = read_recipe(SPECS["masked"], ["sample.steps=3", "sample.temperature=0.5"])
    each = contender(SPECS["masked"])
    tape = each.engine.under(recipe).draw_tape(seed=0, indices=[0, 1])
    labels = torch.tensor([3, 4])
    made = each.engine.under(recipe).latents(labels=labels, tape=tape, on_step=None)
    direct = build_engine(stand_in_system(recipe, seed=0), name="plain", device=torch.device("cpu"), precision="fp32")
    assert torch.equal(made, direct.latents(labels=labels, tape=tape, on_step=None))


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("mar_b", ["sample.steps=1"]), ("ablations/table1_ar_ce", []), ("ablations/table2_kl8", ["sample.steps=1"])],
)
def test_tokenizers_stand_in_without_their_files(name, overrides):
    recipe = read_recipe(name, ["data.image_size=32", *overrides])
    tokenizer = random_tokenizer(recipe, seed=0)
    shape = (1, recipe.latent.channels, recipe.latent.size, recipe.latent.size)
    latents = torch.randn(shape) if recipe.latent.codebook_size is None else torch.zeros(shape, dtype=torch.long)
    assert tokenizer.decode(latents).shape == (1, 3, 32, 32)


def test_budget_halves_batches_and_then_leaves_out_the_most_expensive():
    machine = Machine(flops_per_second=1e11, bytes_per_second=1e10)
    variants = [Variant(read_recipe("mar_b", [f"sample.steps={steps}"]), (), False) for steps in (8, 16, 32, 64, 128)]
    assert fitting_batch_size(variants, machine, wanted=64, seconds=1e9) == 64
    assert fitting_batch_size(variants, machine, wanted=64, seconds=120) == 1
    kept = affordable(variants, machine, batch_size=1, seconds=1000)
    assert [each.recipe.sample.steps for each in kept] == [8, 16, 32]
    assert len(affordable(variants, machine, batch_size=1, seconds=1)) == 2


def test_command_writes_everything_and_gates(tmp_path, capsys):
    command = ["bench", *list(SPECS.values())[:3], "--batch-size", "2", "--num", "6", "--steps", "2,4"]
    command += ["--dit-steps", "3", "--gpus", "0", "--json", "--out", str(tmp_path)]
    assert run(command) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    stored = json.loads((tmp_path / "bench.json").read_text())
    assert result["points"] == stored["points"]
    assert [point["family"] for point in stored["points"]] == ["MAR Diff Loss"] * 2 + ["AR Diff Loss", "DiT"]
    assert [point["batches"] for point in stored["points"]] == [2] * 4
    assert all(point["seconds_per_image"] > 0 and point["peak_memory_bytes"] > 0 for point in stored["points"])
    assert all(point["fid"] is None for point in stored["points"])
    assert "random weights" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "tradeoff.png").stat().st_size > 10_000

    for point in stored["points"]:
        point["seconds_per_image"] /= 1000
        point["peak_memory_bytes"] *= 2
    baseline = tmp_path / "baseline.json"
    baseline.write_text(json.dumps(stored))
    assert run([*command, "--baseline", str(baseline)]) == 1
    shown = capsys.readouterr()
    assert shown.err.count("seconds_per_image") == 4
    assert "error: 4 numbers are more than 10% worse" in shown.err
    assert "debug_head_diffusion (MAR Diff Loss), fast engine, 2 AR steps" in shown.err
    (line,) = [line for line in shown.out.splitlines() if line.startswith("{")]
    result = json.loads(line)
    assert line == shown.out.splitlines()[-1] and result["exit_code"] == 1 and result["error"] in shown.err
    assert len(result["regressions"]) == 4 and len(result["points"]) == 4


def test_runs_are_named_by_their_folders(tmp_path, monkeypatch):
    def named(*names):
        system = stand_in_system(read_recipe(SPECS["masked"], []), seed=0)
        entries = [Entry(dataclasses.replace(system, name=name), [], is_random=False) for name in names]
        return [entry.system.name for entry in shortly_named(entries)]

    run_folder = tmp_path / "runs" / "tiny"
    run_folder.mkdir(parents=True)
    monkeypatch.chdir(run_folder)
    assert named(".") == named("runs/tiny/") == named(str(run_folder)) == ["tiny"], "a baseline knows it by this name"
    assert named("hub:you/it", "../other") == ["it", "other"]
    assert named("a/tiny", "b/tiny") == ["a/tiny", "b/tiny"]
    with pytest.raises(UsageError, match="named twice"):
        named("tiny", "tiny")


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["dit", "--steps", "2"], ["--steps counts AR steps of masked models, and no system here is one"]),
        (["causal", "--steps", "2", "--dit-steps", "3"], ["--steps counts", "--dit-steps counts"]),
        (["masked", "--dit-steps", "3"], ["--dit-steps counts diffusion steps of a DiT"]),
        (["masked", "dit", "causal", "--steps", "2", "--dit-steps", "3"], []),
    ],
)
def test_step_counts_that_no_system_takes_are_named(arguments, lines, capsys):
    assert run(["bench", *(SPECS.get(each, each) for each in arguments), "--dry-run"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "changes nothing" in line]
    assert len(said) == len(lines) and all(line.startswith(start) for line, start in zip(said, lines, strict=True))


def measuring_is_wrong(*_):
    raise AssertionError("this should have been refused before anything is measured")


def test_a_gate_never_overwrites_its_baseline(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("marcli.bench.tradeoff.run_bench", measuring_is_wrong)
    point = {
        "key": "x",
        "system": "x",
        "steps": 1,
        "diffusion_steps": 1,
        "seconds_per_image": 1,
        "peak_memory_bytes": 1,
        "fid": None,
        "batch_size": 1,
    }
    baseline = tmp_path / "bench.json"
    baseline.write_text(json.dumps({"format": FORMAT, "points": [point]}))
    before = baseline.read_text()
    link = tmp_path / "link.json"
    link.symlink_to(baseline)
    for named in (baseline, link):
        assert run(["bench", SPECS["masked"], "--out", str(tmp_path), "--baseline", str(named)]) == 2
        assert "would overwrite the baseline" in capsys.readouterr().err
    assert baseline.read_text() == before


def test_a_folder_that_cannot_be_written_is_found_before_measuring(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("marcli.bench.tradeoff.run_bench", measuring_is_wrong)
    (tmp_path / "file").write_text("x")
    assert run(["bench", SPECS["masked"], "--gpus", "0", "--out", str(tmp_path / "file")]) == 2
    assert "is a file: choose another --out" in capsys.readouterr().err


def test_numbers_are_on_disk_before_anything_is_drawn_and_shown_where_they_cannot_be_written(
    tmp_path, monkeypatch, capsys
):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    command = ["bench", SPECS["dit"], "--dit-steps", "2", "--batch-size", "2", "--num", "4", "--gpus", "0"]
    for failing in ("plot.draw_tradeoff", "report.atomic_file"):
        monkeypatch.setattr(f"marcli.bench.{failing}", fail)
        assert run([*command, "--out", str(tmp_path)]) == 1
        shown = capsys.readouterr()
        assert "The disk is full" in shown.err and "debug_backbone_dit" in shown.out
        assert len(json.loads((tmp_path / "bench.json").read_text())["points"]) == 1
        assert (tmp_path / "report.md").is_file()


def test_a_trained_run_is_judged_against_its_own_data_and_found_without_a_name(tmp_path, monkeypatch, capsys):
    recipe = read_recipe(SPECS["masked"], ["sample.diffusion_steps=3"])
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    system = stand_in_system(recipe, seed=0)
    write_recipe(recipe, folder / "recipe.yaml")
    save_file(
        {f"ema.{name}": value for name, value in system.model.state_dict().items()}, folder / "weights.safetensors"
    )
    save_tokenizer(system.tokenizer, folder / "tokenizer", recipe=recipe)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MARCLI_CACHE", str(tmp_path / "cache"))

    command = ["bench", "--steps", "2", "--num", "64", "--batch-size", "8", "--gpus", "0", "--engine", "plain,fast"]
    assert run([*command, "--fast-preset", "swift", "--sweep", "cfg=1,2"]) == 0
    stored = json.loads((folder / "bench" / "bench.json").read_text())
    assert "Using runs/tiny, the newest run." in stored["notes"]
    assert {point["engine_class"] for point in stored["points"]} == {"plain", "lossless", "approximate"}
    assert len(stored["points"]) == 8
    assert {point["fid_images"] for point in stored["points"]} == {64}
    assert (folder / "bench" / "sweep.png").is_file()
    exact = {
        (point["engine"], point["cfg"]): point["fid"]
        for point in stored["points"]
        if point["engine_class"] != "approximate"
    }
    assert exact["plain", 1.0] == pytest.approx(exact["fast", 1.0], rel=1e-3)
    assert exact["plain", 1.0] > 0
    reference = open_pictures("digits", image_size=8)
    features = pixel_extractor()(reference.read(range(len(reference))))[:, :64]
    engine = build_engine(system, name="plain", device=torch.device("cpu"), precision="fp32")
    engine = engine.under(read_recipe(SPECS["masked"], ["sample.diffusion_steps=3", "sample.steps=2", "sample.cfg=1"]))
    batches = [range(start, start + 8) for start in range(0, 64, 8)]
    made = [each.images for each in generate(engine, system.tokenizer, classes=range(10), seed=0, batches=batches)]
    mine = pixel_extractor()(torch.cat(made))[:, :64]
    expected = frechet_distance(gaussian_from_features(mine), gaussian_from_features(features))
    assert exact["plain", 1.0] == pytest.approx(expected, rel=1e-3)
    assert "FD(pixels)-64" in {point["fid_name"] for point in stored["points"]}
