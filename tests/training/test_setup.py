"""From recipe and folder to a job: sources, tokenizers, and what is refused."""

import json

import pytest
import torch

from marcli.data.images import open_images
from marcli.errors import UsageError
from marcli.recipe.reader import read_recipe, write_recipe
from marcli.runtime.rundir import RunDir
from marcli.tokenizer.caching import cache_latents
from marcli.training.resume import check_same_recipe


@pytest.fixture
def cached(recipe, processes, tmp_path):
    """A tiny recipe with a latent cache of both flips."""
    made = recipe(data__latents=str(tmp_path / "cache"))
    cache_latents(made, open_images(made.data), folder=tmp_path / "cache", processes=processes)
    return made


def test_a_cache_trains_as_the_images_do(recipe, cached, train, tmp_path):
    """Pixels are cached without loss, so both runs end with the same bits."""
    from_images = train(recipe(steps=3), tmp_path / "images")
    from_cache = train(cached.model_copy(update={"train": recipe(steps=3).train}), tmp_path / "cached")
    assert from_cache.source.is_latents and not from_images.source.is_latents
    for name, value in from_images.model.state_dict().items():
        assert torch.equal(value, from_cache.model.state_dict()[name]), name


def test_other_data_on_resume_are_refused(recipe, cached, train, tmp_path):
    train(recipe(), tmp_path / "run", die_at=7)
    with pytest.raises(UsageError, match=r"\(images\) than there is now \(a latent cache\): move .*cache away,"):
        train(cached, tmp_path / "run")


def test_a_cache_of_another_scale_is_refused(cached, start, tmp_path):
    other = cached.model_copy(update={"tokenizer": cached.tokenizer.model_copy(update={"scale": 2.0})})
    with pytest.raises(UsageError, match="scale"):
        start(other, tmp_path / "run")


def test_scale_is_measured_once_and_travels_with_the_run(recipe, start, tmp_path):
    job = start(recipe(tokenizer__scale=None), tmp_path)
    latents, labels, _ = job.to_device(job.feed.batch(0))
    assert 0.8 < latents.std() < 1.2 and labels.dtype == torch.int64
    record = tmp_path / "tokenizer" / "tokenizer.json"
    stored = json.loads(record.read_text())
    assert stored["scale"] == job.tokenizer.scale
    record.write_text(json.dumps(stored | {"scale": 3.0}))  # as by an attempt on images that changed since
    assert start(recipe(tokenizer__scale=None), tmp_path).tokenizer.scale == stored["scale"]
    record.write_text(json.dumps(stored | {"scale": 3.0}))
    job.run.weights_path.touch()
    assert start(recipe(tokenizer__scale=None), tmp_path).tokenizer.scale == 3.0


def test_the_job_says_what_it_trains_on(recipe, start, said, tmp_path):
    start(recipe(), tmp_path)
    assert said == ["Training on 1,797 images, encoded by pixels on the fly."]
    start(recipe(data__num_classes=12), tmp_path / "wide")
    assert said[2:] == [
        "2 of 12 classes have no image and will not be learned (10, 11): check data.num_classes and the folders"
    ]


def test_an_attempt_that_took_no_step_does_not_bind_the_folder(tmp_path):
    first, second = (read_recipe("recipes/digits.yaml", [f"train.lr={lr}"]) for lr in ("1e-3", "2e-3"))
    run = RunDir(tmp_path)
    write_recipe(first, run.recipe_path)
    check_same_recipe(second, run)
    (run.checkpoints / "step-00000001").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"train\.lr was 0.001 and is now 0.002"):
        check_same_recipe(second, run)
