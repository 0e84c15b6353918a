"""Which images make a step: every epoch once, a function of seed and step alone."""

import numpy as np
import torch

from marcli.data.batches import batch_flips, batch_indices
from marcli.data.images import ArrayImages
from marcli.data.source import ImageSource


def indices(step: int, *, seed: int = 0, batch_size: int = 32, num_images: int = 100) -> np.ndarray:
    return batch_indices(num_images=num_images, batch_size=batch_size, seed=seed, step=step)


def test_epochs_are_permutations_laid_end_to_end() -> None:
    stream = np.concatenate([indices(step) for step in range(25)])
    for epoch in range(8):
        assert sorted(stream[100 * epoch : 100 * (epoch + 1)]) == list(range(100))
    assert not np.array_equal(stream[:100], stream[100:200])


def test_a_step_needs_no_step_before_it() -> None:
    forward = [indices(step) for step in range(40)]
    backward = [indices(step) for step in reversed(range(40))][::-1]
    assert np.array_equal(forward, backward)
    assert not np.array_equal(indices(3), indices(3, seed=1))


def test_a_batch_larger_than_the_set_repeats_it_evenly() -> None:
    counts = np.bincount(indices(0, batch_size=250), minlength=100)
    assert set(counts.tolist()) == {2, 3}


def test_flips_are_half_independent_of_the_order_and_off_by_choice() -> None:
    flips = np.concatenate([batch_flips(batch_size=256, seed=0, step=step, horizontal_flip=True) for step in range(40)])
    assert abs(flips.mean() - 0.5) < 0.02
    again = batch_flips(batch_size=256, seed=0, step=7, horizontal_flip=True)
    assert np.array_equal(flips[7 * 256 : 8 * 256], again)
    assert not batch_flips(batch_size=256, seed=0, step=7, horizontal_flip=False).any()


def test_an_image_source_mirrors_what_it_is_told_to() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3, 8, 8), np.uint8)
    source = ImageSource(ArrayImages(pixels, np.arange(20), class_names=None))
    for first in range(15):
        payload, labels = source.fetch(np.array([first, first + 1]), np.array([True, False]))
        assert torch.equal(payload[0], torch.from_numpy(pixels[first, :, :, ::-1].copy()))
        assert torch.equal(payload[1], torch.from_numpy(pixels[first + 1]))
        assert labels.tolist() == [first, first + 1]
    assert np.array_equal(source.images.read([3])[0].numpy(), pixels[3])  # the set itself stays as it is
