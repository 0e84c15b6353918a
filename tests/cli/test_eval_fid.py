"""`marcli eval-fid`, from the command line to scores: runs, folders, archives, statistics, and wrong usage."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from marcli.cli import eval_modes
from marcli.cli.app import run
from marcli.cli.eval_request import results_folder
from marcli.data.images import open_images
from marcli.recipe.schema import Recipe
from marcli.sampling import evaluation
from marcli.tokenizer.build import new_tokenizer, save_tokenizer
from tests.model import tiny
from tests.sampling.runs import write_run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    recipe = tiny.recipe("masked", "random", "diffusion", num=12, batch_size=20, cfg=2.0)
    return write_run(tmp_path_factory.mktemp("runs") / "tiny", recipe)


@pytest.fixture
def measure(capsys):
    """Run eval-fid in raw pixels and return the JSON object that it ends with."""

    def call(*arguments: object) -> dict:
        assert run(["eval-fid", *map(str, arguments), "--features", "pixels", "--gpus", "0", "--json"]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


def test_on_the_fly_equals_the_written_pictures_and_their_archive(run_folder, tmp_path, measure):
    options = ["--seed", 3, "--num", 70, "--gpus", "0", "--out", tmp_path / "png", "--npz"]
    assert run(["sample", *map(str, [run_folder, *options])]) == 0
    fly = measure(run_folder, "--seeds", 3, "--num", 70, "--out", tmp_path / "eval")
    written = measure("--images", tmp_path / "png", "--reference", "digits")
    packed = measure("--images", tmp_path / "png/samples.npz", "--reference", "digits")
    assert fly["metrics"] == written["metrics"] == packed["metrics"] and fly["num_images"] == 70
    assert fly["metrics"]["fid"] > 10 and fly["distance_name"] == "FD(pixels)-70"
    [result] = fly["results"]
    assert result["source"]["seed"] == 3 and len(result["source"]["weights_sha256"]) == 64
    assert result["reference"]["num_images"] == 1797
    assert result["protocol"]["rounding"].startswith("round(")
    assert written["results"][0]["protocol"]["rounding"] == "8-bit pictures as stored"
    [file] = fly["files"]
    assert json.loads(Path(file).read_text())["metrics"] == fly["metrics"]


def test_several_seeds_are_made_by_one_engine(run_folder, tmp_path, measure, monkeypatch):
    built = []
    build = eval_modes.build_engine
    monkeypatch.setattr(eval_modes, "build_engine", lambda *args, **options: built.append(1) or build(*args, **options))
    both = measure(run_folder, "--seeds", "0,1", "--num", 30, "--out", tmp_path, "--steps", 2)
    fids = [result["metrics"]["fid"] for result in both["results"]]
    assert fids[0] != fids[1] and both["seeds"] == [0, 1] and len(both["files"]) == 2
    assert both["metrics"]["fid"] == pytest.approx(np.mean(fids))
    assert both["spread"]["fid"] == pytest.approx(np.std(fids, ddof=1))
    source = both["results"][0]["source"]
    assert source["sample"]["steps"] == 2 and (source["engine"], len(built)) == ("fast", 1)


def test_features_of_other_arithmetic_or_another_version_never_meet(run_folder, tmp_path, measure, monkeypatch):
    def sets_after(*arguments: object) -> int:
        measure(run_folder, "--num", 20, "--steps", 1, "--out", tmp_path, *arguments)
        return len(list(tmp_path.glob("features-*")))

    assert [sets_after("--precision", "fp32") for _ in range(2)] == [1, 1]
    assert sets_after("--precision", "bf16") == 2
    monkeypatch.setattr(evaluation, "__version__", "99")
    assert sets_after("--precision", "fp32") == 3


def test_statistics_made_here_are_a_reference(run_folder, tmp_path, measure):
    made = measure("--images", "digits", "--make-stats", tmp_path / "digits.npz")
    assert made["num_images"] == 1797 and made["features"] == "pixels"
    of_run = measure(run_folder, "--make-stats", tmp_path / "run.npz")
    assert of_run["num_images"] == 1797
    options = [run_folder, "--num", 20, "--out", tmp_path]
    direct = measure(*options)
    through = measure(*options, "--reference", tmp_path / "digits.npz")
    assert direct["metrics"] == through["metrics"]
    folder = tmp_path / "folder"
    (folder / "a").mkdir(parents=True)
    for i in range(9):
        Image.fromarray(np.full((20, 16), i * 20, dtype=np.uint8)).save(folder / "a" / f"{i}.JPG", format="JPEG")
    assert measure("--images", folder, "--image-size", 8, "--make-stats", tmp_path / "f.npz")["image_size"] == 8


def test_statistics_of_a_changed_recipe(tmp_path, measure):
    folder = tmp_path / "set" / "a"
    folder.mkdir(parents=True)
    for i in range(9):
        Image.fromarray(np.full((20, 16), i * 20, dtype=np.uint8)).save(folder / f"{i}.png")
    changes = [f"data.path={tmp_path / 'set'}", "data.num_classes=1", "data.image_size=16"]
    made = measure("recipes/digits.yaml", *changes, "--make-stats", tmp_path / "x.npz")
    assert (made["num_images"], made["image_size"]) == (9, 16)


def test_a_missing_reference_is_noticed_before_a_network_is_loaded(capsys, monkeypatch):
    monkeypatch.setattr(eval_modes, "build_extractor", lambda *_, **__: pytest.fail("the network was built"))
    assert run(["eval-fid", "--images", "digits", "--reference", "nope.npz", "--gpus", "0"]) == 2
    assert capsys.readouterr().err == (
        "error: --reference: there is no file nope.npz: check the path, or make statistics with --make-stats.\n"
    )


@pytest.mark.parametrize("given", [["--reference", "digits"], ["--make-stats", "x.npz"]])
def test_a_single_picture_is_refused_before_a_network_is_loaded(given, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(eval_modes, "build_extractor", lambda *_, **__: pytest.fail("the network was built"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "one" / "0.png")
    np.savez(tmp_path / "one.npz", arr_0=np.zeros((1, 8, 8, 3), dtype=np.uint8))
    picture = (tmp_path / "one" / "0.png").read_bytes()
    pq.write_table(pa.table({"image": [picture]}), tmp_path / "one.parquet")
    for images in ("one", "one.npz", "one.parquet"):
        size = ["--image-size", "8"] if images == "one.parquet" else []
        assert run(["eval-fid", "--images", images, *given, *size, "--gpus", "0"]) == 2
        assert f"{images} holds one picture, and statistics need at least 2" in capsys.readouterr().err


def test_places_that_cannot_be_written_are_noticed_before_anything_is_measured(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("marcli.cli.eval_modes.build_extractor", lambda *_, **__: pytest.fail("too late"))
    (tmp_path / "file").touch()
    (tmp_path / "x.eval").touch()
    (tmp_path / "folder.npz").mkdir()
    images = ["--images", tmp_path / "x", "--reference", "digits"]
    for arguments in (
        ["--images", "digits", "--make-stats", tmp_path / "file" / "x.npz"],
        ["--images", "digits", "--make-stats", tmp_path / "folder.npz"],
        ["--images", "digits", "--reference", "digits", "--out", tmp_path / "file"],
        [run_folder, "--out", tmp_path / "file"],
        [*images, "--dry-run"],
        images,
    ):
        (tmp_path / "x").mkdir(exist_ok=True)
        assert run(["eval-fid", *map(str, arguments), "--features", "pixels", "--gpus", "0"]) == 2


def test_results_lie_beside_the_pictures_however_they_are_named(tmp_path, monkeypatch):
    (tmp_path / "set" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "set")
    monkeypatch.setenv("HOME", str(tmp_path))
    beside = tmp_path / "set.eval"
    for name in (".", "./", "a/..", "~/set", "../set/", tmp_path / "set"):
        assert results_folder(str(name), None).resolve() == beside
    assert results_folder("you/photos", None) == Path("you/photos.eval")


def test_the_table_is_for_people(run_folder, tmp_path, capsys):
    arguments = [run_folder, "--num", 20, "--out", tmp_path, "--features", "pixels", "--gpus", "0"]
    assert run(["eval-fid", *map(str, arguments)]) == 0
    out = capsys.readouterr().out
    assert "FD(pixels)-20" in out and "precision" in out and "FID" not in out
    assert "warning: 20 pictures are fewer than the 64 feature dimensions" in out


def test_a_narrow_terminal_loses_no_number(run_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    arguments = ["--features", "pixels", "--seeds", "0,1", "--out", str(tmp_path), "--json"]
    assert run(["eval-fid", str(run_folder), "--num", "20", *arguments, "--gpus", "0"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    record = json.loads(last)
    shown = next(line for line in lines if "FD(pixels)-20" in line)
    assert f"{record['metrics']['fid']:.2f}" in shown and f"{record['spread']['fid']:.2f} over 2 seeds" in shown


def test_weights_without_their_pictures_need_a_reference(run_folder, capsys):
    arguments = [run_folder / "weights.safetensors", "--features", "pixels", "--gpus", "0"]
    assert run(["eval-fid", *map(str, arguments)]) == 2
    assert "give --reference, for ImageNet ADM's" in capsys.readouterr().err


def noise(folder: Path, channels: int) -> Path:
    """Six pictures of 8x8 pixels, of which the first is grey."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, channels), dtype=np.uint8)
    pixels[0] = pixels[0, :, :, :1]
    for number, picture in enumerate(pixels):
        Image.fromarray(picture.repeat(3 // channels, axis=2)).save(folder / f"{number}.png")
    return folder


def test_pixels_in_colour_and_a_grey_reference_are_refused_before_any_work(tmp_path, monkeypatch, capsys):
    grey, colour = noise(tmp_path / "grey", 1), noise(tmp_path / "colour", 3)
    tree = tiny.recipe("masked", "random", "diffusion", batch_size=20).model_dump(mode="json")
    tree["data"] |= {"path": str(colour), "channels": 3, "num_classes": 1}
    made = write_run(tmp_path / "run", Recipe.model_validate_json(json.dumps(tree)))
    monkeypatch.setattr("marcli.metrics.collect.collect", lambda *given, **options: pytest.fail("measured"))
    monkeypatch.setattr(evaluation, "collect", lambda *given, **options: pytest.fail("sampled"))
    for given in ([made], ["--images", colour]):
        arguments = [*given, "--reference", grey, "--features", "pixels", "--gpus", "0"]
        assert run(["eval-fid", *map(str, arguments)]) == 2
        assert "grey holds grey pictures only, and the samples are in colour" in capsys.readouterr().err


def test_a_grey_codebook_in_three_channels_is_measured_in_one(tmp_path, measure):
    """Its pictures are grey, although the recipe says colour."""
    tree = tiny.recipe("masked", "random", "cross_entropy", steps=1, batch_size=20).model_dump(mode="json")
    tree["data"]["channels"] = 3
    recipe = Recipe.model_validate_json(json.dumps(tree))
    tokenizer = new_tokenizer(recipe.tokenizer, recipe.data, open_images(recipe.data), seed=0, device="cpu")
    made = write_run(tmp_path / "run", recipe)
    save_tokenizer(tokenizer, made / "tokenizer", recipe=recipe)
    assert measure(made, "--num", 20)["metrics"]["fid"] > 0


@pytest.mark.slow
def test_two_and_three_processes_give_the_scores_of_one(run_folder, tmp_path):
    """70 pictures in units of 20 do not divide evenly among them; the reference is measured by all of them, too."""
    records = []
    for processes in (1, 2, 3):
        command = [sys.executable, "-m", "marcli", "eval-fid", run_folder, "--num", 70, "--features", "pixels"]
        command += ["--gpus", 0, "--processes", processes, "--out", tmp_path / str(processes), "--json"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=True)
        records.append(json.loads(done.stdout.splitlines()[-1]))
    for record in records[1:]:
        assert record["num_images"] == 70
        assert record["metrics"] == pytest.approx(records[0]["metrics"], rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a", "b"], "one run at a time"),
        (["a", "--images", "b"], "not both"),
        (["--images", "b"], "need a --reference"),
        (["--images", "b", "--reference", "c", "--steps", "3"], "made already"),
        (["--make-stats", "x.npz"], "needs pictures"),
        (["--images", "b", "--make-stats", "x.npy"], r"call it x.npz"),
        (["--images", "b", "--make-stats", "x.npz", "--reference", "d"], "leave --reference out"),
        (["--num", "5kk"], "--num '5kk'"),
        (["--num", "1"], "at least 2"),
        (["--num", "9" * 5000], "--num '99999999999999999999...9999999999': give a number"),
        (["--seeds", "1,1"], "different whole numbers"),
        (["--seeds", "0,00"], "different whole numbers"),
        (["--seeds", "9" * 5000], "give different whole numbers"),
        (["--images", "", "--reference", "digits"], "--images is empty"),
        (["--images", "digits", "--reference", " "], "--reference is empty"),
        (["--images", "digits", "--make-stats", ""], "call it OUT.npz"),
        (["--images", "digits", "--reference", "digits", "--seeds", "3"], "--seeds says how a run makes pictures"),
        (["--images", "digits", "--reference", "digits", "--classes", "3"], "but --images digits are made already"),
        (["--images", "digits", "--reference", "digits", "--weights", "raw"], "--weights says how"),
        (["--images", "digits", "--make-stats", "x.npz", "--engine", "plain"], "--engine says how"),
        (["recipes/digits.yaml", "--make-stats", "x.npz", "--seeds", "1"], "but the pictures of a data set are made"),
        (["recipes/digits.yaml", "--make-stats", "x.npz", "data.nope=1"], "data.nope"),
        (["digits", "--make-stats", "x.npz", "data.image_size=4"], "changes a recipe, but digits is none"),
        (["--images", "nothing-here", "--reference", "digits"], "There is no nothing-here"),
        (["--images", "digits", "--reference", "none.npz"], "there is no file none.npz"),
        (["--images", "digits", "--reference", "/none/x"], "--reference: there is no /none/x"),
        (["digits", "--image-size", "4"], "--image-size crops --images"),
        (["recipes/digits.yaml", "--make-stats", "x.npz", "--image-size", "4"], "give data.image_size=4"),
        (["--images", "digits", "--make-stats", "x.npz", "--out", "y"], "leave --out out"),
        (
            ["--features", "pixels", "--inception", "x.pt"],
            "--inception goes with --features inception, not with pixels",
        ),
        (["--features", "pixels", "--protocol", "clean"], "--protocol goes with --features inception"),
        (
            ["--features", "inception", "--feature-weights", "x"],
            "--feature-weights goes with --features dinov2 or timm",
        ),
        (["--features", "nope"], "neither inception"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # what is wrongly accepted leaves its files there
    arguments = arguments if "--features" in arguments else [*arguments, "--features", "pixels"]
    assert run(["eval-fid", *arguments, "--gpus", "0"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and words in err and err.count("error") == 1
