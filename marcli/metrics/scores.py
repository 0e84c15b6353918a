"""Inception Score, kernel distance, and precision and recall, from features alone and in float64.

Everything random is an argument (an order, index pairs), because published scores differ by nothing more; the named
protocols at the end say which order and indices their programs use.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int, Shaped

from marcli.errors import MarcliError
from marcli.metrics.statistics import require_finite


@dataclass(frozen=True)
class Score:
    """Mean of a score over its splits or subsets, and their standard deviation (n denominator, as published)."""

    mean: float
    std: float


def inception_score(
    logits: Shaped[np.ndarray, "images classes"], *, order: Int[np.ndarray, " images"], edges: Int[np.ndarray, " edges"]
) -> Score:
    """Return exp(E KL(p(y|x) || p(y))) per split (Salimans et al., 2016): split i is order[edges[i]:edges[i + 1]]."""
    require_finite(logits)
    scores = []
    for start, stop in pairwise(edges):
        part = np.asarray(logits[order[start:stop]], dtype=np.float64)
        part -= part.max(axis=1, keepdims=True)
        log_p = part - np.log(np.exp(part).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        log_marginal = np.log(np.maximum(p.mean(axis=0), np.finfo(np.float64).tiny))
        scores.append(np.exp((p * (log_p - log_marginal)).sum(axis=1).mean()))
    return Score(mean=float(np.mean(scores)), std=float(np.std(scores)))


def kernel_distance(
    samples: Shaped[np.ndarray, "images dim"],
    reference: Shaped[np.ndarray, "others its_dim"],
    *,
    subsets: Iterable[tuple[Int[np.ndarray, " size"], Int[np.ndarray, " size"]]],
) -> Score:
    """Return KID: the unbiased MMD^2 with kernel (x'y / dim + 1)^3 (Binkowski et al., 2018) over pairs of subsets."""
    require_same_dim(samples, reference)
    require_finite(samples)
    require_finite(reference)
    distances = []
    for of_samples, of_reference in subsets:
        x = np.asarray(samples[of_samples], dtype=np.float64)
        y = np.asarray(reference[of_reference], dtype=np.float64)
        count, dim = x.shape
        within_x, within_y, between = ((a @ b.T / dim + 1.0) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        within = within_x.sum() - np.trace(within_x) + within_y.sum() - np.trace(within_y)
        distances.append(within / (count * (count - 1)) - 2.0 * between.mean())
    return Score(mean=float(np.mean(distances)), std=float(np.std(distances)))


def precision_recall(
    samples: Shaped[np.ndarray, "images dim"], reference: Shaped[np.ndarray, "others its_dim"], *, neighbours: int
) -> tuple[float, float]:
    """Return the share of samples inside the reference's manifold, and of the reference inside the samples'.

    A manifold is the union of balls around its points, each reaching to the point's k-th nearest neighbour, itself
    not counted (Kynkaanniemi et al., 2019; k = 3 in ADM's suite). Raises MarcliError with k or fewer points.
    """
    require_same_dim(samples, reference)
    for name, points in (("samples", samples), ("reference", reference)):
        require_finite(points)
        if len(points) <= neighbours:
            raise MarcliError(
                f"Precision and recall look at {neighbours} neighbours, but the {name} are only {len(points)} images."
            )
    # Distances do not change when both sets move; a small offset keeps |x|^2 - 2xy + |y|^2 exact.
    centre = np.asarray(reference, dtype=np.float64).mean(axis=0)
    x, y = np.asarray(samples, dtype=np.float64) - centre, np.asarray(reference, dtype=np.float64) - centre
    precision = covered(x, y, neighbour_radii(y, neighbours))
    recall = covered(y, x, neighbour_radii(x, neighbours))
    return precision, recall


def neighbour_radii(points: Float[np.ndarray, "points dim"], neighbours: int) -> Float[np.ndarray, " points"]:
    """Return the squared distance of each point to its k-th nearest other point."""
    radii, lengths = np.empty(len(points)), squared_lengths(points)
    for rows in blocks(len(points)):
        distances = squared_distances(points[rows], points, lengths)
        distances.partition(neighbours, axis=1)
        radii[rows] = distances[:, neighbours]
    return radii


def covered(
    points: Float[np.ndarray, "points dim"],
    centres: Float[np.ndarray, "centres dim"],
    radii: Float[np.ndarray, " centres"],
) -> float:
    """Return the share of `points` that lie in at least one ball."""
    inside, lengths = 0, squared_lengths(centres)
    for rows in blocks(len(points)):
        inside += int((squared_distances(points[rows], centres, lengths) <= radii).any(axis=1).sum())
    return inside / len(points)


def squared_distances(
    first: Float[np.ndarray, "a dim"], second: Float[np.ndarray, "b dim"], second_lengths: Float[np.ndarray, " b"]
) -> Float[np.ndarray, "a b"]:
    """Return squared L2 distances, never below 0; `second_lengths` are the `squared_lengths` of `second`."""
    distances = first @ second.T
    distances *= -2.0
    distances += squared_lengths(first)[:, None]
    distances += second_lengths
    return np.maximum(distances, 0.0, out=distances)


def squared_lengths(points: Float[np.ndarray, "points dim"]) -> Float[np.ndarray, " points"]:
    """Return |x|^2 of each row, without a second array of their size."""
    return np.einsum("ij,ij->i", points, points)


def blocks(count: int) -> Iterator[slice]:
    """Yield slices of 512 rows: the distances of a block to 50,000 points are 0.2 GB."""
    return (slice(start, min(start + 512, count)) for start in range(0, count, 512))


def require_same_dim(samples: np.ndarray, reference: np.ndarray) -> None:
    """Raise MarcliError when two feature sets come from different networks."""
    if samples.shape[1] != reference.shape[1]:
        raise MarcliError(
            f"The samples have {samples.shape[1]} features and the reference {reference.shape[1]}: "
            "they were made by different feature networks."
        )


def fidelity_splits(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return order and edges of torch-fidelity's Inception Score: shuffled with seed 2020, 10 equal splits."""
    return np.random.RandomState(2020).permutation(count), np.arange(11) * count // 10


def adm_splits(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return order and edges of ADM's Inception Score: chunks of 5,000.

    ADM's program does not shuffle, because its samples come in random class order. Ours come in class order, where
    chunks would see few classes each, so one fixed permutation (seed 2020) stands for that random order.
    """
    edges = np.append(np.arange(0, count, 5000), count)
    return np.random.RandomState(2020).permutation(count), edges


SPLITS = {"torch-fidelity": fidelity_splits, "adm": adm_splits}


def fidelity_subsets(num_samples: int, num_reference: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield torch-fidelity's pairs of subsets for KID: 100 of 1,000 images (or all of a smaller set), seed 2020."""
    size = min(1000, num_samples, num_reference)
    if size < 2:
        raise MarcliError("KID needs at least 2 images on each side.")
    generator = np.random.RandomState(2020)
    for _ in range(100):
        of_samples = generator.choice(num_samples, size, replace=False)
        yield of_samples, generator.choice(num_reference, size, replace=False)
