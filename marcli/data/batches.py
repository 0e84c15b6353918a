"""Which images make up a training step: a pure function of (seed, step).

The epochs' permutations are laid end to end and cut into batches, so a step's images depend neither on the number of
processes nor on where a run was resumed, and every epoch shows every image once.
"""

from functools import lru_cache

import numpy as np

ORDER, FLIP = 0x0D2D, 0xF11B  # keep the two streams apart for equal seeds


def batch_indices(*, num_images: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Return the images of optimizer step `step` (0 first) as int64 [batch_size]; a batch may span epochs."""
    start = step * batch_size
    positions = np.arange(start, start + batch_size)
    epochs, offsets = np.divmod(positions, num_images)
    indices = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        inside = epochs == epoch
        indices[inside] = _permutation(num_images, seed, int(epoch))[offsets[inside]]
    return indices


def batch_flips(*, batch_size: int, seed: int, step: int, horizontal_flip: bool) -> np.ndarray:
    """Return which images of step `step` are mirrored, as bool [batch_size]; all False without horizontal_flip."""
    if not horizontal_flip:
        return np.zeros(batch_size, dtype=bool)
    return np.random.default_rng([FLIP, seed, step]).integers(0, 2, size=batch_size, dtype=np.uint8).astype(bool)


@lru_cache(maxsize=2)
def _permutation(num_images: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([ORDER, seed, epoch]).permutation(num_images)
