"""Frechet distance between two Gaussians, without a matrix square root and without scipy.

tr((S1 S2)^1/2) is the sum of the singular values of L1' L2 for any factors S = L L'. Full rank takes one Cholesky
factor and a symmetric eigenvalue problem; sets with fewer images than dimensions take their own features as the factor,
which is exact where S1 S2 has no stable square root.
"""

import numpy as np
from jaxtyping import Float

from marcli.errors import MarcliError
from marcli.metrics.statistics import Gaussian


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """Return |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) (Dowson and Landau, 1982), never below 0.

    Raises MarcliError when the dimensions differ or a value is not finite.
    """
    if first.dim != second.dim:
        raise MarcliError(
            f"The features have {first.dim} dimensions and the reference has {second.dim}: "
            "they were made by different feature networks."
        )
    for gaussian in (first, second):
        if not (np.isfinite(gaussian.mean).all() and np.isfinite(gaussian.covariance).all()):
            raise MarcliError("The mean or covariance holds NaN or infinity: no distance can be computed from it.")
    if is_same(first.mean, second.mean) and is_same(first.covariance, second.covariance):
        return 0.0
    shift = first.mean - second.mean
    spread = np.trace(first.covariance) + np.trace(second.covariance)
    return max(0.0, float(shift @ shift + spread - 2.0 * trace_of_root(first, second)))


def is_same(first: Float[np.ndarray, "..."], second: Float[np.ndarray, "..."]) -> bool:
    """Tell whether two moments differ by rounding only, as those of one set summed in two orders do."""
    return bool(np.abs(first - second).max() <= 1e-12 * np.abs(first).max())


def trace_of_root(first: Gaussian, second: Gaussian) -> float:
    """Return tr((S1 S2)^1/2)."""
    if first.factor is not None and second.factor is not None:
        return nuclear_norm(first.factor @ second.factor.T)
    if first.factor is not None:
        return nuclear_norm(first.factor @ covariance_factor(second.covariance))
    if second.factor is not None:
        return trace_of_root(second, first)
    lower = cholesky_or_none(first.covariance)
    inner = second.covariance
    if lower is None:
        lower, inner = covariance_factor(second.covariance), first.covariance
    eigenvalues = np.linalg.eigvalsh(lower.T @ inner @ lower)
    return float(np.sqrt(np.clip(eigenvalues, 0.0, None)).sum())


def nuclear_norm(matrix: Float[np.ndarray, "rows columns"]) -> float:
    """Return the sum of the singular values."""
    return float(np.linalg.svd(matrix, compute_uv=False).sum())


def covariance_factor(covariance: Float[np.ndarray, "dim dim"]) -> Float[np.ndarray, "dim dim"]:
    """Return L with L L' = covariance: Cholesky's, or the scaled eigenvectors where it is singular."""
    lower = cholesky_or_none(covariance)
    if lower is not None:
        return lower
    eigenvalues, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.clip(eigenvalues, 0.0, None))


def cholesky_or_none(covariance: Float[np.ndarray, "dim dim"]) -> Float[np.ndarray, "dim dim"] | None:
    """Return the lower Cholesky factor, or None for a matrix that is not positive definite."""
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        return None
