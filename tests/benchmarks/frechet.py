"""Time the Frechet term beside the published ways: python tests/benchmarks/frechet.py [--dim 2048] [--repeat 3]

- full rank: statistics of more images than dimensions. Ours (Cholesky and symmetric eigenvalues) beside
  scipy.linalg.sqrtm of the product (pytorch-fid, clean-fid, ADM) and numpy's eigvals of it (torch-fidelity);
- few images: fewer than dimensions. Ours takes the features' singular values; the exact value is their nuclear norm.

Best of `--repeat` runs in one process, interleaved; wall and CPU seconds, since only the latter mean much on a shared
machine. scipy is optional: without it only the others are timed.
"""

import argparse
import json
import os
import time
from collections.abc import Callable

import numpy as np

from marcli.metrics.frechet import frechet_distance
from marcli.metrics.statistics import Gaussian, gaussian_from_features

CLOCKS = ("wall_s", "cpu_s")


def features(seed: int, count: int, dim: int) -> np.ndarray:
    """Non-negative features with a decaying spectrum, as a network's last pooling gives them."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(dim, dim)).astype(np.float32) * np.geomspace(1, 0.05, dim, dtype=np.float32)
    rows = generator.normal(size=(count, dim)).astype(np.float32) @ mixing.T / np.sqrt(dim, dtype=np.float32)
    return np.maximum(rows + 0.1 * seed, 0)


def by_sqrtm(first: Gaussian, second: Gaussian) -> float:
    """The published way: the square root of the product of the covariances."""
    from scipy.linalg import sqrtm

    return assemble(first, second, np.trace(sqrtm(first.covariance @ second.covariance)).real)


def by_eigvals(first: Gaussian, second: Gaussian) -> float:
    """torch-fidelity's way: the eigenvalues of the product, which is not symmetric."""
    eigenvalues = np.linalg.eigvals(first.covariance @ second.covariance)
    return assemble(first, second, np.sqrt(eigenvalues.astype(complex)).real.sum())


def assemble(first: Gaussian, second: Gaussian, root: float) -> float:
    """Put the trace of the root into the distance."""
    shift = first.mean - second.mean
    return float(shift @ shift + np.trace(first.covariance) + np.trace(second.covariance) - 2 * root)


def best_seconds(
    ways: dict[str, Callable[[Gaussian, Gaussian], float]], pair: tuple[Gaussian, Gaussian], repeat: int
) -> dict[str, dict[str, float]]:
    """Return the value and the shortest times of each way."""
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    values = {}
    for _ in range(repeat):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            values[name] = way(*pair)
            runs[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: {"value": values[name], "wall_s": min(wall for wall, _ in times), "cpu_s": min(cpu for _, cpu in times)}
        for name, times in runs.items()
    }


def main() -> None:
    """Print a table per case and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--few", type=int, default=500, help="images of the rank-deficient case")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    ways = {"marcli": frechet_distance, "scipy sqrtm": by_sqrtm, "numpy eigvals": by_eigvals}
    try:
        import scipy

        print(f"scipy {scipy.__version__}, numpy {np.__version__}, {os.cpu_count()} cores")
    except ImportError:
        del ways["scipy sqrtm"]
    record = {}
    for case, count in (("full rank", 2 * options.dim), ("few images", options.few)):
        pair = tuple(gaussian_from_features(features(seed, count, options.dim)) for seed in (0, 1))
        results = best_seconds(ways, pair, options.repeat)
        ours = results["marcli"]
        print(f"{case}: {count} images, {options.dim} dimensions")
        for name, found in results.items():
            times = "  ".join(f"{key[:-2]} {found[key]:7.2f} s (x{found[key] / ours[key]:.1f})" for key in CLOCKS)
            off = abs(found["value"] - ours["value"]) / ours["value"]
            print(f"  {name:13s} {times}  {found['value']:.8f}, apart {off:.1e}", flush=True)
        record[case] = results
    print(json.dumps(record))


if __name__ == "__main__":
    main()
