"""From a recipe to a tokenizer and back from the folder that a run or cache keeps."""

from pathlib import Path

import numpy as np
import pytest
import torch

from marcli.data.images import ArrayImages, open_images
from marcli.errors import MarcliError, UsageError
from marcli.recipe.reader import read_recipe
from marcli.recipe.schema import Recipe
from marcli.tokenizer.base import to_bytes, to_signed
from marcli.tokenizer.build import build_tokenizer, measure_scale, prepare_tokenizer, save_tokenizer

RECIPE = Path(__file__).parents[2] / "recipes" / "digits.yaml"
KMEANS = ("tokenizer={kind: kmeans, codebook_size: 16}", "model.patch_size=1", "model.head={kind: cross_entropy}")
KL16 = ("data.image_size=32", "data.channels=3", "tokenizer.kind=kl16", "model.patch_size=1", "sample.steps=null")
CPU = torch.device("cpu")


def digits(*overrides: str) -> Recipe:
    return read_recipe(RECIPE, overrides)


def test_bytes_survive_the_trip_to_minus_one_to_one() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_signed(every)), every)
    assert to_bytes(torch.tensor([-3.0, 3.0, float("nan"), float("inf"), -float("inf")])).tolist() == [
        0,
        255,
        0,
        255,
        0,
    ]


def test_pixels_come_back_and_have_unit_variance() -> None:
    recipe = digits()
    images = open_images(recipe.data)
    tokenizer = prepare_tokenizer(recipe, images, device=CPU)
    batch = images.read(range(1797))
    latents = tokenizer.sample(tokenizer.encode(batch), None)
    assert latents.dtype == torch.float32
    assert abs(latents.std().item() - 1) < 1e-3
    assert tokenizer.scale == pytest.approx(1 / (batch.double() / 127.5).std(unbiased=False).item(), rel=1e-5)
    assert torch.equal(tokenizer.decode(latents), batch)


def test_a_given_scale_is_taken() -> None:
    recipe = digits("tokenizer.scale=0.5")
    assert prepare_tokenizer(recipe, open_images(recipe.data), device=CPU).scale == 0.5


def test_images_that_do_not_vary_have_no_scale() -> None:
    recipe = digits()
    blank = ArrayImages(np.full((5, 1, 8, 8), 7, np.uint8), np.zeros(5), class_names=None)
    with pytest.raises(MarcliError, match=r"do not vary over the images: set tokenizer.scale"):
        measure_scale(build_tokenizer(recipe, folder=None), blank)


@pytest.mark.parametrize("overrides", [(), KMEANS])
def test_a_saved_tokenizer_is_the_same_tokenizer(tmp_path, overrides) -> None:
    recipe = digits(*overrides)
    images = open_images(recipe.data)
    made = prepare_tokenizer(recipe, images, device=CPU)
    save_tokenizer(made, tmp_path, recipe=recipe)
    again = build_tokenizer(recipe, folder=tmp_path)
    assert (again.scale, again.fingerprint) == (made.scale, made.fingerprint)
    assert torch.equal(again.encode(images.read(range(50))), made.encode(images.read(range(50))))
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_a_run_of_another_tokenizer_is_refused(tmp_path) -> None:
    recipe = digits()
    save_tokenizer(prepare_tokenizer(recipe, open_images(recipe.data), device=CPU), tmp_path, recipe=recipe)
    with pytest.raises(UsageError, match=r"was made with tokenizer kind pixels .* asks for kind kmeans"):
        build_tokenizer(digits(*KMEANS), folder=tmp_path)
    with pytest.raises(UsageError, match=r"channels 1, size 16"):
        build_tokenizer(digits("data.image_size=16"), folder=tmp_path)
    with pytest.raises(UsageError, match=r"made with scale 1.33019, but tokenizer.scale is 3.0"):
        build_tokenizer(digits("tokenizer.scale=3"), folder=tmp_path)


def test_weights_that_changed_since_are_refused(tmp_path) -> None:
    recipe = digits(*KMEANS)
    made = prepare_tokenizer(recipe, open_images(recipe.data), device=CPU)
    save_tokenizer(made, tmp_path, recipe=recipe)
    made.codebook[3] += 0.1
    made.save_weights(tmp_path)
    with pytest.raises(MarcliError, match="put the old weights back"):
        build_tokenizer(recipe, folder=tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"tokenizer": 3}'])
def test_a_damaged_record_is_named(tmp_path, content) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(MarcliError, match=r"tokenizer.json is not what was written"):
        build_tokenizer(digits(), folder=tmp_path)


def test_without_network_the_place_for_the_file_is_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MarcliError, match=r"kl16.ckpt.* put a copy at "):
        build_tokenizer(digits(*KL16), folder=None)
    with pytest.raises(MarcliError, match=r"there is no such file or folder"):
        build_tokenizer(digits(*KL16, "tokenizer.weights=/nowhere/kl16.ckpt"), folder=None)
