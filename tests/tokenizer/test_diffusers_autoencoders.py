"""The consistency decoder and any autoencoder of diffusers, on small random networks saved to disk."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ConsistencyDecoderVAE

from marcli.errors import MarcliError
from marcli.recipe.reader import read_recipe
from marcli.recipe.schema import Recipe
from marcli.recipe.tokenizer import LatentShape
from marcli.tokenizer.autoencoder import AutoencoderTokenizer, load_autoencoder
from marcli.tokenizer.build import build_tokenizer, save_tokenizer
from marcli.tokenizer.consistency import ConsistencyTokenizer

SHAPE = LatentShape(channels=4, size=8, stride=2, codebook_size=None)
DIGITS = Path(__file__).parents[2] / "recipes" / "digits.yaml"


def recipe_over(weights: str) -> Recipe:
    section = f"tokenizer={{kind: autoencoder, weights: {weights}, channels: 4, stride: 2, scale: 1.0}}"
    return read_recipe(DIGITS, ["data.image_size=16", "data.channels=3", section])


def small_kl() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 32),
        latent_channels=4,
    )


def test_consistency_decoding_depends_on_nothing_but_the_latents() -> None:
    torch.manual_seed(0)
    network = ConsistencyDecoderVAE(
        encoder_block_out_channels=(32, 32),
        encoder_down_block_types=("DownEncoderBlock2D",) * 2,
        decoder_block_out_channels=(32, 64),
        decoder_down_block_types=("ResnetDownsampleBlock2D",) * 2,
        decoder_up_block_types=("ResnetUpsampleBlock2D",) * 2,
        decoder_layers_per_block=1,
    ).eval()
    tokenizer = ConsistencyTokenizer(SHAPE, scale=0.18215, network=network)
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    rows = tokenizer.encode(images)
    assert rows.shape == (3, 8, 8, 8)
    latents = tokenizer.sample(rows, None)
    together = tokenizer.decode(latents)
    assert together.shape == images.shape
    assert torch.equal(together, tokenizer.decode(latents))
    alone = torch.cat([tokenizer.decode(latents[i : i + 1]) for i in range(3)])
    assert (together.int() - alone.int()).abs().max() <= 1


def test_an_autoencoder_with_posterior_is_found_by_its_config(tmp_path) -> None:
    small_kl().save_pretrained(tmp_path)
    tokenizer = AutoencoderTokenizer(SHAPE, scale=2.0, network=load_autoencoder(tmp_path), source=str(tmp_path))
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert tokenizer.has_posterior
    assert tokenizer.encode(images).shape == (2, 8, 8, 8)
    assert tokenizer.decode(tokenizer.sample(tokenizer.encode(images), None)).shape == images.shape


def test_an_autoencoder_without_posterior_is_found_by_its_config(tmp_path) -> None:
    AutoencoderTiny(
        encoder_block_out_channels=(32, 32),
        decoder_block_out_channels=(32, 32),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).save_pretrained(tmp_path)
    tokenizer = AutoencoderTokenizer(SHAPE, scale=2.0, network=load_autoencoder(tmp_path), source=str(tmp_path))
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert not tokenizer.has_posterior
    assert tokenizer.encode(images).shape == (2, 4, 8, 8)
    assert tokenizer.decode(tokenizer.sample(tokenizer.encode(images), None)).shape == images.shape


def test_other_channels_than_the_recipe_says_name_the_keys_to_set(tmp_path) -> None:
    small_kl().save_pretrained(tmp_path)
    wrong = LatentShape(channels=16, size=4, stride=4, codebook_size=None)
    with pytest.raises(MarcliError, match=r"tokenizer.channels=4 tokenizer.stride=2"):
        AutoencoderTokenizer(wrong, scale=1.0, network=load_autoencoder(tmp_path), source=str(tmp_path))


@pytest.mark.parametrize("name", ["UNet2DModel", "StableDiffusionPipeline", "NoSuchClass", "os"])
def test_a_config_that_names_another_class_is_refused(tmp_path, name) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(MarcliError, match="not an autoencoder of diffusers"):
        load_autoencoder(tmp_path)


def test_a_truncated_folder_is_refused(tmp_path) -> None:
    small_kl().save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(MarcliError, match=r"needs config.json"):
        load_autoencoder(tmp_path)


def test_a_hub_id_stays_the_name_of_the_weights(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MARCLI_CACHE", str(tmp_path / "cache"))
    small_kl().save_pretrained(tmp_path / "cache" / "published" / "user--name")
    recipe = recipe_over("user/name")
    made = build_tokenizer(recipe, folder=None)
    assert made.weights_source == "user/name"
    save_tokenizer(made, tmp_path / "saved", recipe=recipe)
    assert build_tokenizer(recipe, folder=tmp_path / "saved").fingerprint == made.fingerprint


def test_other_weights_than_those_of_a_saved_tokenizer_are_refused(tmp_path, monkeypatch) -> None:
    first, other, moved, saved = (tmp_path / name for name in ("first", "other", "moved", "saved"))
    for folder in (first, other):
        small_kl().save_pretrained(folder)
    made = build_tokenizer(recipe_over(str(first)), folder=None)
    save_tokenizer(made, saved, recipe=recipe_over(str(first)))
    with pytest.raises(MarcliError, match=r"not those that .*saved was made with"):
        build_tokenizer(recipe_over(str(other)), folder=saved)
    assert build_tokenizer(recipe_over("first"), folder=saved).fingerprint == made.fingerprint  # from another folder
    first.rename(moved)
    assert build_tokenizer(recipe_over(str(moved)), folder=saved).fingerprint == made.fingerprint
