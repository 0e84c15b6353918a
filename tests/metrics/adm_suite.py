"""ADM's evaluation formulas, written plainly from their description: slow, whole matrices, no blocking."""

import numpy as np


def inception_score(predictions: np.ndarray, split_size: int) -> float:
    """Softmax outputs in the order given, chunks of `split_size`."""
    scores = []
    for start in range(0, len(predictions), split_size):
        part = predictions[start : start + split_size]
        divergence = part * (np.log(part) - np.log(part.mean(axis=0)))
        scores.append(np.exp(divergence.sum(axis=1).mean()))
    return float(np.mean(scores))


def precision_recall(reference: np.ndarray, samples: np.ndarray, k: int) -> tuple[float, float]:
    """Balls to the k-th neighbour around both sets; a point is covered when any ball holds it."""

    def distances(first, second):
        return np.sqrt(((first[:, None] - second[None]) ** 2).sum(axis=2))

    reference_radii = np.sort(distances(reference, reference), axis=1)[:, k]
    sample_radii = np.sort(distances(samples, samples), axis=1)[:, k]
    between = distances(samples, reference)
    precision = (between <= reference_radii[None, :]).any(axis=1).mean()
    recall = (between <= sample_radii[:, None]).any(axis=0).mean()
    return float(precision), float(recall)


def frechet(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> float:
    """FIDStatistics' distance, with the eigenvalues of the product in place of its square root."""
    (mu1, sigma1), (mu2, sigma2) = first, second
    root = np.sqrt(np.linalg.eigvals(sigma1 @ sigma2).astype(complex)).real.sum()
    return float(((mu1 - mu2) ** 2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * root)
