"""`marcli sample`, from a run's folder to pictures on disk."""

import json

import numpy as np
import pytest
from PIL import Image

from marcli.cli.app import run
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
    assert names == sorted([*pngs, "animation.gif", "grid.png", "samples.json", "samples.npz"])
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
