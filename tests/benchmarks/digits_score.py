"""Score generated 8x8 digits in their own pixel space: python tests/benchmarks/digits_score.py SAMPLES.npz [...]

Each npz holds arr_0 (uint8 [n, 8, 8, 1 or 3]) and arr_1 (the requested classes), as `marcli sample --npz` writes it.
Pixels are brought to scikit-learn's units 0..16 (x / 255 * 16, without rounding) and compared with its 1,797 digits:

- agreement: share of samples to which an SVM (RBF, C=5, trained on all real digits) gives the requested class;
- frechet: Frechet distance in the 64 pixel dimensions (500 real digits against all of them: 12);
- copies: share of samples nearer than 8.0 (L2) to a real digit (real digits: median 16 to their nearest).
"""

import argparse
import json
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from marcli.metrics.frechet import frechet_distance
from marcli.metrics.statistics import gaussian_from_features

COPY_DISTANCE = 8.0


def read_samples(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels float64 [n, 64] in 0..16 and classes int64 [n]."""
    with np.load(path, allow_pickle=False) as archive:
        images, labels = archive["arr_0"], archive["arr_1"]
    if images.dtype != np.uint8 or images.shape[1:3] != (8, 8) or images.ndim != 4:
        raise SystemExit(f"{path}: arr_0 must be uint8 [n, 8, 8, channels], not {images.dtype} {list(images.shape)}.")
    if images.shape[3] == 3 and not (images == images[..., :1]).all():
        raise SystemExit(f"{path}: the digits are grey, but the three channels differ.")
    return images[..., 0].reshape(len(images), 64) / 255.0 * 16.0, labels.astype(np.int64)


def nearest_distances(samples: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Return the L2 distance of each sample to the nearest real digit."""
    return np.array([np.linalg.norm(real - sample, axis=1).min() for sample in samples])


def score(samples: np.ndarray, labels: np.ndarray) -> dict[str, float | int]:
    """Return agreement, Frechet distance and share of copies of `samples` (float64 [n, 64] in 0..16)."""
    real, classes = load_digits(return_X_y=True)
    judge = SVC(kernel="rbf", C=5).fit(real, classes)
    nearest = nearest_distances(samples, real)
    return {
        "num": len(samples),
        "agreement": float((judge.predict(samples) == labels).mean()),
        "frechet": frechet_distance(gaussian_from_features(samples), gaussian_from_features(real)),
        "copies": float((nearest < COPY_DISTANCE).mean()),
        "nearest_median": float(np.median(nearest)),
    }


def main() -> None:
    """Print one line per file, then one JSON line with all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", nargs="+", type=Path, help="npz files with arr_0 and arr_1")
    records = []
    for path in parser.parse_args().samples:
        record = score(*read_samples(path))
        print(
            f"{path}: {record['num']} samples, agreement {record['agreement']:.1%}, frechet {record['frechet']:.1f}, "
            f"nearer than {COPY_DISTANCE} to a real one {record['copies']:.1%} (median {record['nearest_median']:.1f})"
        )
        records.append({"path": str(path), **record})
    print(json.dumps(records))


if __name__ == "__main__":
    main()
