"""The learned codebook: what it learns, what it reports, and that it survives a save."""

import numpy as np
import pytest
import torch

from marcli.data.digits import open_digits
from marcli.data.images import ArrayImages
from marcli.errors import MarcliError
from marcli.recipe.tokenizer import LatentShape
from marcli.tokenizer import base, kmeans
from marcli.tokenizer.base import nearest_codes
from marcli.tokenizer.kmeans import KMeansTokenizer


def tokenizer_for(codes: int, *, output: str = "codes") -> KMeansTokenizer:
    as_codes = output == "codes"
    shape = LatentShape(channels=1 if as_codes else 4, size=4, stride=2, codebook_size=codes if as_codes else None)
    return KMeansTokenizer(shape, scale=1.0, channels=1, codebook_size=codes)


def test_patches_of_few_values_are_learned_exactly() -> None:
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (5, 2, 2))
    pixels = np.stack([np.block([[patches[a] for a in row] for row in rng.integers(0, 5, (4, 4))]) for _ in range(50)])
    images = ArrayImages(pixels[:, None].astype(np.uint8), np.zeros(50), class_names=None)
    tokenizer = tokenizer_for(5)
    tokenizer.fit(images, seed=0)
    batch = images.read(range(50))
    codes = tokenizer.encode(batch)
    assert codes.shape == (50, 1, 4, 4)
    assert codes.unique().tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(tokenizer.decode(tokenizer.sample(codes, None)), batch)
    assert torch.equal(tokenizer.decode(tokenizer.sample(codes.to(torch.uint16), None)), batch)  # as from a cache


def test_more_codes_reconstruct_digits_better_and_latents_decode_like_codes() -> None:
    digits = open_digits(image_size=8, channels=1)
    batch = digits.read(range(200))
    errors = []
    for codes in (8, 64):
        tokenizer = tokenizer_for(codes)
        tokenizer.fit(digits, seed=0)
        found = tokenizer.decode(tokenizer.sample(tokenizer.encode(batch), None))
        errors.append((found.float() - batch.float()).square().mean().sqrt().item())
        before_codes = tokenizer_for(codes, output="latents")
        before_codes.codebook.copy_(tokenizer.codebook)
        assert torch.equal(before_codes.decode(before_codes.sample(before_codes.encode(batch), None)), found)
    assert errors[1] < 0.6 * errors[0]
    assert errors[1] < 25  # grey levels of 255


def test_fewer_patches_than_codes_is_said_in_words() -> None:
    images = ArrayImages(np.zeros((9, 1, 8, 8), np.uint8), np.zeros(9), class_names=None)
    with pytest.raises(MarcliError, match=r"only 1 different patches for 4 codes: lower the tokenizer's codebook_size"):
        tokenizer_for(4).fit(images, seed=0)


def test_no_more_patches_are_learned_from_than_there_may_be(monkeypatch) -> None:
    monkeypatch.setattr(kmeans, "PATCHES", 900)
    images, batches, used = open_digits(image_size=8, channels=1), ArrayImages.batches, []
    images = ArrayImages(images.read(range(100)).numpy(), images.labels[:100], class_names=None)
    monkeypatch.setattr(
        ArrayImages, "batches", lambda self, size, indices: used.extend(indices) or batches(self, size, indices=indices)
    )
    tokenizer_for(8).fit(images, seed=0)
    assert 450 <= 16 * len(used) <= 900 and max(used) >= 97


def test_a_saved_codebook_comes_back_with_its_fingerprint(tmp_path) -> None:
    digits = open_digits(image_size=8, channels=1)
    tokenizer = tokenizer_for(16)
    tokenizer.fit(digits, seed=0)
    tokenizer.save_weights(tmp_path)
    again = tokenizer_for(16)
    again.load_weights(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    again.codebook[0, 0] += 1
    assert again.fingerprint != tokenizer.fingerprint


def test_any_seed_of_a_recipe_learns_a_codebook() -> None:
    tokenizer = tokenizer_for(16)
    tokenizer.fit(open_digits(image_size=8, channels=1), seed=2**32 + 1)
    assert tokenizer.codebook.isfinite().all()


def test_codes_are_found_without_the_distances_of_all_at_once(monkeypatch) -> None:
    vectors, codebook = torch.randn(1000, 4), torch.randn(300, 4)
    expected, sizes, cdist = torch.cdist(vectors, codebook).argmin(dim=1), [], torch.cdist
    monkeypatch.setattr(base, "DISTANCES", 20_000)
    monkeypatch.setattr(torch, "cdist", lambda *pair: sizes.append(len(pair[0]) * len(pair[1])) or cdist(*pair))
    assert torch.equal(nearest_codes(vectors, codebook), expected)
    assert max(sizes) <= 20_000 and sum(sizes) == 300_000
