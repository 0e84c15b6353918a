"""`marcli tokenize` from argv to table, picture and JSON."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from marcli.cli.app import run
from marcli.pretrained.ldm import published_name
from marcli.tokenizer import kl


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        coarse.resize((40, 50), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    (folder / "2.png").write_bytes(b"broken")
    return folder


def save_small_kl16(path: Path, monkeypatch) -> None:
    """Write weights in the published layout for a narrow kl16, and have the product expect that width."""
    narrow = replace(kl.ARCHITECTURES["kl16"], widths=(32,) * 5)
    monkeypatch.setitem(kl.ARCHITECTURES, "kl16", narrow)
    torch.manual_seed(0)
    tensors = {}
    for name, value in kl.AutoencoderKL(**narrow.blocks()).state_dict().items():
        published = published_name(name, levels=5)
        is_convolution = ".attn" in published and value.ndim == 2
        tensors[published] = value[..., None, None] if is_convolution else value
    torch.save({"model": tensors}, path)


def tokenize(capsys, *arguments: str) -> tuple[int, dict, str]:
    code = run(["tokenize", *arguments, "--gpus", "0", "--json"])
    shown = capsys.readouterr()
    return code, json.loads(shown.out.splitlines()[-1]), shown.out + shown.err


def test_digits_compare_in_one_table(tmp_path, capsys) -> None:
    code, record, text = tokenize(
        capsys, "digits", "--tokenizer", "pixels", "--tokenizer", "{kind: kmeans, codebook_size: 32}",
        "--num", "300", "--out", str(tmp_path),
    )  # fmt: skip
    assert code == 0
    pixels, kmeans = record["tokenizers"]
    assert (pixels["name"], kmeans["name"]) == ("pixels", "kmeans 32")
    assert pixels["psnr"] is None
    assert 15 < kmeans["psnr"] < 30
    assert 0.5 < kmeans["ssim"] < pixels["ssim"] == pytest.approx(1)
    assert 0 <= pixels["rfid"] < 1e-6 < kmeans["rfid"]
    assert kmeans["codes_used"] <= kmeans["codes"] == 32
    assert pixels["measured_scale"] == pytest.approx(1.33, abs=0.02)
    assert "scale = 1/std" in text
    assert json.loads((tmp_path / "tokenize.json").read_text())["tokenizers"] == record["tokenizers"]
    assert Image.open(tmp_path / "roundtrip.png").size[0] > Image.open(tmp_path / "roundtrip.png").size[1]


def test_the_picture_shows_the_whole_range_of_the_images(tmp_path, capsys) -> None:
    (tmp_path / "photos").mkdir()
    for level in range(0, 100, 5):
        Image.new("RGB", (8, 8), (level,) * 3).save(tmp_path / "photos" / f"{level:03}.png")
    code, record, _ = tokenize(
        capsys, str(tmp_path / "photos"), "--tokenizer", "pixels", "--num", "10", "--out", str(tmp_path / "out")
    )
    assert (code, record["tokenizers"][0]["images"]) == (0, 10)
    levels = set(np.unique(Image.open(tmp_path / "out" / "roundtrip.png"))) & set(range(0, 100, 5))
    assert len(levels) == 8 and levels >= {0, 95}


def test_kl16_with_other_weights_says_so_and_a_broken_picture_is_named(photos, tmp_path, capsys, monkeypatch) -> None:
    save_small_kl16(tmp_path / "filled.ckpt", monkeypatch)
    code, record, text = tokenize(
        capsys, str(photos), "--tokenizer", f"kl16={tmp_path / 'filled.ckpt'}", "--out", str(tmp_path / "out")
    )
    assert code == 0
    (figures,) = record["tokenizers"]
    assert figures["images"] == 4
    assert figures["latent_std"] == pytest.approx(1 / figures["measured_scale"])
    assert figures["scale"] == figures["measured_scale"] != 0.2325
    assert "are not the published weights" in text
    assert f"skipped {photos / '2.png'}: not an image" in text
    width, height = Image.open(tmp_path / "out" / "roundtrip.png").size
    assert width == pytest.approx(2 * height, rel=0.1)  # four pictures, two rows


def test_few_pictures_that_are_all_broken_are_not_all_there_are(photos, tmp_path, capsys) -> None:
    (photos / "0.png").write_bytes(b"no picture")
    given = ["tokenize", str(photos), "--tokenizer", "pixels", "--num", "1", "--out", str(tmp_path / "out")]
    assert run([*given, "--gpus", "0"]) == 1
    assert "1 of the 5 images in" in (said := capsys.readouterr().err) and "give a larger --num" in said


def test_a_dry_run_says_settings_pictures_and_places_and_writes_nothing(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, record, text = tokenize(capsys, "digits", "--tokenizer", "kmeans", "--tokenizer", "pixels", "--dry-run")
    assert code == 0
    assert [each["kind"] for each in record["tokenizers"]] == ["kmeans", "pixels"]
    assert (record["images"], record["image_size"], record["channels"]) == (256, 8, 1)
    assert record["places"] == {"picture": "runs/tokenize/roundtrip.png", "record": "runs/tokenize/tokenize.json"}
    assert "codebook_size: " in text and "# images: 256\n# data: digits\n# image size: 8\n" in text
    assert list(tmp_path.iterdir()) == []


def test_the_split_asked_for_is_taken_with_a_recipe_too(photos, tmp_path, capsys) -> None:
    split = tmp_path / "both"
    (split / "test").mkdir(parents=True)
    photos.rename(split / "train")
    shutil.copy(split / "train" / "0.png", split / "test")
    recipe = ("recipes/debug/head_diffusion.yaml", f"data.path={split}", "data.channels=3")
    found = [tokenize(capsys, *recipe, *more, "--dry-run")[1]["images"] for more in ((), ("--split", "test"))]
    assert found == [5, 1]


def test_keys_of_a_recipe_can_be_changed(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    keys = ("tokenizer.codebook_size=64", "data.image_size=12")
    _, record, _ = tokenize(capsys, "recipes/debug/head_cross_entropy.yaml", *keys, "--dry-run")
    assert record["tokenizers"][0]["codebook_size"] == 64 and record["image_size"] == 12
    code, record, _ = tokenize(capsys, "digits", "data.image_size=6", "--dry-run")
    assert code == 2 and "data.image_size=6 would change a recipe, and digits is none" in record["error"]


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (("/no/such/folder",), 2, "does not exist"),
        (("digits", "--tokenizer", "kl17"), 2, "'kl17'"),
        (("digits", "--tokenizer", "{kind: kmeans, codes: 3}"), 2, "tokenizer.codes is not a key"),
        (("digits", "--tokenizer", "kl16"), 2, "too few for the tokenizer: give --image-size"),
        (("recipes/digits.yaml", "--tokenizer", "kl8"), 2, "set data.channels=3, in which grey images are grey"),
        (("digits", "--tokenizer", "kmeans", "--image-size", "7"), 2, "choose a multiple of 2"),
        (("digits", "--tokenizer", "kmeans", "--image-size", "99999999999"), 2, "--image-size"),
        (("digits", "--tokenizer", "kl16=/no/file.ckpt", "--image-size", "32"), 1, "no such file"),
    ],
)
def test_wrong_usage_is_one_sentence(tmp_path, capsys, monkeypatch, arguments, code, named) -> None:
    monkeypatch.chdir(tmp_path)
    found, record, _ = tokenize(capsys, *arguments)
    assert found == code
    assert named in record["error"]
