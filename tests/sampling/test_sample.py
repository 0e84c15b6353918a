"""`marcli sample`, from a run's folder to pictures on disk."""

import contextlib
import json
import os
import signal
from functools import partial

import numpy as np
import pytest
from PIL import Image

from marcli.cli.app import run
from marcli.cli.options import preset_overrides
from marcli.runtime.lock import exclusive
from marcli.sampling.album import Album, picture_path
from marcli.sampling.engine.plain import PlainEngine
from marcli.sampling.evaluation import picture_settings
from marcli.sampling.folder import finish_folder, prepare_folder
from marcli.sampling.load import load_system
from marcli.sampling.sample import default_folder, write_pictures
from tests.metrics.team import OneOf
from tests.model import tiny
from tests.sampling.runs import write_run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    recipe = tiny.recipe("masked", "random", "diffusion", num=12, batch_size=5, cfg=2.0)
    return write_run(tmp_path_factory.mktemp("runs") / "tiny", recipe)


def sample(*arguments: object) -> int:
    return run(["sample", *map(str, arguments), "--gpus", "0"])


def test_pictures_grid_npz_and_record(run_folder, tmp_path, capsys):
    assert sample(run_folder, "--out", tmp_path, "--npz", "--animate", "--json", "--classes", "3,7", "--seed", 4) == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    pngs = [f"{i:06d}.png" for i in range(12)]
    assert names == sorted([*pngs, "animation.gif", "grid.png", "lock", "samples.json", "samples.npz"])
    record = json.loads((tmp_path / "samples.json").read_text())
    assert record["images"] == [{"index": i, "seed": 4, "class": [3, 7][i % 2]} for i in range(12)]
    assert record["settings"]["cfg"] == 2.0 and record["steps"] == 6 and len(record["weights_sha256"]) == 64
    with np.load(tmp_path / "samples.npz") as npz:
        images, labels = npz["arr_0"], npz["arr_1"]
    assert images.shape == (12, 8, 8, 3) and images.dtype == np.uint8 and labels.tolist() == [3, 7] * 6
    assert np.array_equal(images[5, :, :, 0], np.asarray(Image.open(tmp_path / "000005.png")))
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["out"] == str(tmp_path)
    with Image.open(tmp_path / "animation.gif") as gif:
        assert gif.n_frames == 6
    grid = np.asarray(Image.open(tmp_path / "grid.png"))[::8, ::8]  # enlarged; a gap of one pixel around every picture
    columns = grid.shape[1] // 9
    for i, image in enumerate(images[..., 0]):
        top, left = 1 + 9 * (i // columns), 1 + 9 * (i % columns)
        assert np.array_equal(grid[top : top + 8, left : left + 8], image)


def test_settings_are_overridden_by_options_and_keys(run_folder, tmp_path):
    assert sample(run_folder, "--out", tmp_path, "--num", 2, "--steps", 3, "sample.temperature=0.9") == 0
    record = json.loads((tmp_path / "samples.json").read_text())
    assert record["steps"] == 3 and record["settings"]["temperature"] == 0.9 and len(record["images"]) == 2


def test_ema_and_raw_weights_differ(run_folder, tmp_path):
    for weights in ("ema", "raw"):
        assert sample(run_folder, "--out", tmp_path / weights, "--num", 1, "--weights", weights) == 0
    pictures = [np.asarray(Image.open(tmp_path / weights / "000000.png")) for weights in ("ema", "raw")]
    assert not np.array_equal(*pictures)


def test_pictures_do_not_depend_on_the_batch_size(run_folder, tmp_path):
    for size in (1, 5):
        assert sample(run_folder, "--out", tmp_path / str(size), "--num", 5, "--batch-size", size) == 0
    for i in range(5):
        one, five = (np.asarray(Image.open(tmp_path / size / f"{i:06d}.png")).astype(int) for size in "15")
        assert (np.abs(one - five) <= 1).mean() >= 0.999


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--classes", "3,10"], "this model has classes 0 to 9"),
        (["--classes", "cat"], "give class numbers"),
        (["--steps", "17"], "at most 16"),
        (["train.lr=1"], "only sample.* can be changed"),
        (["another-run"], "one run, not 2"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(run_folder, tmp_path, capsys, arguments, sentence):
    assert sample(run_folder, "--out", tmp_path / "out", *arguments) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def pictures_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("[0-9]*.png"))}


def test_an_interrupted_call_goes_on_and_ends_with_the_same_pictures(run_folder, tmp_path, monkeypatch, capsys):
    assert sample(run_folder, "--out", tmp_path / "whole") == 0
    made = []

    class Interrupted(Album):
        def add(self, pictures):
            super().add(pictures)
            made.extend(pictures.indices)
            if 0 in pictures.indices:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("marcli.sampling.sample.Album", Interrupted)
    parts = tmp_path / "parts"
    assert sample(run_folder, "--out", parts) == 75
    assert "Stopped by SIGTERM with 5 of 12 pictures" in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in parts.iterdir()) == [*(f"{i:06d}.png" for i in range(5)), "lock", "plan.json"]
    assert sample(run_folder, "--out", parts, "--animate") == 75, "the first batch is made again for its animation"
    made.clear()
    assert sample(run_folder, "--out", parts) == 0
    assert made == [*range(5, 12)]
    assert pictures_of(parts) == pictures_of(tmp_path / "whole")
    assert {path.name for path in parts.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}


def test_progress_says_that_it_counts_the_share_of_one_of_several_processes(run_folder, tmp_path, capsys):
    system = load_system(str(run_folder), weights="ema", overrides=[])
    engine, plan = PlainEngine(system.model, system.recipe), {"classes": [0], "seed": 0}
    for world_size, line in ((1, "sample: 12 of 12 pictures"), (2, "sample, this process's share: 7 of 7 pictures")):
        folder = tmp_path / str(world_size)
        write_pictures(system, engine, OneOf(0, world_size), None, out=folder, plan=plan)
        assert capsys.readouterr().err.splitlines()[-1].startswith(line)


def test_more_pictures_of_the_same_plan_keep_those_that_are_there(run_folder, tmp_path):
    assert sample(run_folder, "--out", tmp_path / "more", "sample.num=7") == 0
    kept = (tmp_path / "more" / "000004.png").stat().st_ino
    assert sample(run_folder, "--out", tmp_path / "more") == 0
    assert (tmp_path / "more" / "000004.png").stat().st_ino == kept
    assert sample(run_folder, "--out", tmp_path / "whole") == 0
    assert pictures_of(tmp_path / "more") == pictures_of(tmp_path / "whole")


def test_features_of_pictures_are_those_of_any_number_of_them():
    systems = (
        tiny.system(tiny.recipe("masked", "random", "diffusion", **settings))
        for settings in ({"num": 4}, {"num": 8}, {"num": 8, "cfg": 2.0})
    )
    asked = {"seed": 0, "classes": [0], "precision": "fp32"}
    few, many, guided = (
        picture_settings(system, PlainEngine(system.model, system.recipe), **asked) for system in systems
    )
    assert few == many != guided


def test_what_was_asked_for_before_stays_beside_the_same_pictures(run_folder, tmp_path):
    out, others = tmp_path / "out", ("samples.npz", "animation.gif")
    command = (run_folder, "--out", out)
    assert sample(*command, "--num", 6, "--npz", "--animate") == 0
    before = [(out / name).read_bytes() for name in others]
    assert sample(*command, "--num", 6) == 0
    assert [(out / name).read_bytes() for name in others] == before
    assert sample(*command, "--num", 7) == 0
    assert not any((out / name).exists() for name in others)


def test_another_path_to_the_run_goes_on_with_its_pictures(run_folder, tmp_path, monkeypatch):
    assert sample(run_folder, "--out", tmp_path, "--num", 7) == 0
    kept = (tmp_path / "000004.png").stat().st_ino
    assert sample(f"{run_folder}/", "--out", tmp_path) == 0
    monkeypatch.chdir(run_folder)
    assert sample(".", "--out", tmp_path) == 0
    assert (tmp_path / "000004.png").stat().st_ino == kept
    assert json.loads((tmp_path / "samples.json").read_text())["system"] == "."


@pytest.mark.parametrize("other", [["--classes", 3], ["--seed", 1], ["--cfg", 3], ["--weights", "raw"], ["--steps", 2]])
def test_pictures_of_two_plans_never_mix(run_folder, tmp_path, other):
    assert sample(run_folder, "--out", tmp_path / "both", "--npz") == 0
    for folder in ("both", "alone"):
        assert sample(run_folder, "--out", tmp_path / folder, "--num", 7, *other) == 0
    assert pictures_of(tmp_path / "both") == pictures_of(tmp_path / "alone")
    assert not (tmp_path / "both" / "samples.npz").exists()


@pytest.mark.parametrize("record", [None, '{"seed": 0}', "[]", "{"])
def test_pictures_of_another_origin_are_left_alone(run_folder, tmp_path, capsys, record):
    (tmp_path / "000000.png").write_bytes(b"mine")
    if record is not None:
        (tmp_path / "samples.json").write_text(record)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sample(run_folder, "--out", tmp_path) == 2
    assert "that `marcli sample` did not write" in " ".join(capsys.readouterr().err.split())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_two_calls_never_write_into_one_folder(run_folder, tmp_path, capsys):
    assert sample(run_folder, "--out", tmp_path) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with exclusive(tmp_path / "lock"):
        assert sample(run_folder, "--out", tmp_path, "--seed", 1) == 1
    assert f"{tmp_path} is in use by process {os.getpid()}" in " ".join(capsys.readouterr().err.split())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_a_killed_call_left_half_written_goes(run_folder, tmp_path):
    half = tmp_path / ".000003.partial-0123456789ab.png"
    half.write_bytes(b"half")
    assert sample(run_folder, "--out", tmp_path) == 0
    assert not half.exists()


@pytest.mark.parametrize("length", [0, 20, 60])
def test_a_damaged_picture_is_named_and_made_again(run_folder, tmp_path, capsys, length):
    assert sample(run_folder, "--out", tmp_path) == 0
    whole, picture = pictures_of(tmp_path), tmp_path / "000003.png"
    picture.write_bytes(picture.read_bytes()[:length])
    assert sample(run_folder, "--out", tmp_path) == 1
    assert f"{picture} is damaged" in " ".join(capsys.readouterr().err.split())
    picture.unlink()
    assert sample(run_folder, "--out", tmp_path) == 0
    assert pictures_of(tmp_path) == whole


def test_a_file_as_folder_is_refused_before_the_model_is_loaded(tmp_path, capsys):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert sample("no-such-run", "--out", out) == 2
        assert "is a file: choose another --out" in " ".join(capsys.readouterr().err.split())


def test_a_model_without_ar_steps_is_not_animated(tmp_path, capsys):
    run_folder = write_run(tmp_path / "dit", tiny.recipe("dit", None, None, num=2))
    assert sample(run_folder, "--out", tmp_path / "out", "--animate") == 2
    assert "--animate shows AR steps" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_default_folders_tell_the_settings_apart(run_folder):
    system = load_system(str(run_folder), weights="ema", overrides=[])
    every, names = list(range(10)), set()
    for overrides in ([], ["sample.cfg_schedule=constant"], ["sample.clip_denoised=2"], ["sample.max_timestep=900"]):
        other = load_system(str(run_folder), weights="ema", overrides=overrides)
        names.add(default_folder(other, seed=0, classes=every).name)
    names |= {default_folder(system, seed=0, classes=classes).name for classes in ([3], [7, 3], every[:9] * 30)}
    assert len(names) == 7 and max(map(len, names)) < 160


def test_default_folders_tell_a_preset_from_one_with_another_switch(run_folder):
    def name(*overrides):
        chosen = [f"sample.{override}" for override in ("diffusion_steps=50", *overrides)]
        system = load_system(str(run_folder), weights="ema", overrides=[*preset_overrides("disa"), *chosen])
        return default_folder(system, seed=0, classes=range(10)).name

    assert "-seed0-disa-max_timestep950" in name()
    assert "-seed0-disa-solverddim-max_timestep950" in name("approximate.solver=ddim")
    switches = ["guidance_from=1.1", "guidance_refresh=3", "head_guidance_refresh=4", "order=checkerboard"]
    long = [name(*(f"approximate.{switch}" for switch in switches), f"clip_denoised={clip}") for clip in (1.25, 1.5)]
    assert long[0] != long[1] and max(map(len, long)) < 160


def test_a_run_is_found_by_its_place_at_home_and_keeps_its_pictures(run_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(run_folder.parent))
    system = load_system(f"~/{run_folder.name}/", weights="ema", overrides=[])
    assert default_folder(system, seed=0, classes=range(10)).is_relative_to(run_folder)


def test_a_kill_while_a_folder_is_prepared_never_gives_pictures_to_another_plan(tmp_path, monkeypatch):
    """Killed before any of its changes, and repeated: what is left is of the new plan alone."""
    old, new = {"marcli": "1", "seed": 0}, {"marcli": "1", "seed": 1}
    for survived in range(9):
        folder = tmp_path / str(survived)
        prepare_folder(folder, old, num=3)
        for index in range(3):
            picture_path(folder, index).touch()
        finish_folder(folder, {**old, "num": 3, "images": []})
        changes = iter(range(survived))

        def change(real, *arguments, left=changes, **settings):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return real(*arguments, **settings)

        with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
            for name in ("unlink", "replace"):
                patched.setattr(os, name, partial(change, getattr(os, name)))
            prepare_folder(folder, new, num=3)
        prepare_folder(folder, new, num=3)
        assert [path.name for path in folder.glob("[!.]*")] == ["plan.json"]
        assert json.loads((folder / "plan.json").read_text()) == new
