"""Features and a reference to scores, and everything a reader needs to compare them with others.

A Frechet distance is called FID-50k only when it is one, and a result carries its protocol, hashes and versions, so
that no number travels alone.
"""

import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import PIL
import torch
from jaxtyping import Bool, Float

from marcli import __version__
from marcli.metrics.features import Extractor, merge_grey_channels
from marcli.metrics.frechet import frechet_distance
from marcli.metrics.references import Reference, check_comparable
from marcli.metrics.scores import (
    SPLITS,
    fidelity_subsets,
    inception_score,
    kernel_distance,
    precision_recall,
)
from marcli.metrics.statistics import gaussian_from_features, require_finite

NEIGHBOURS = 3
PAPER_NUM = 50_000
ROUNDING = {
    "generated": "round((x + 1) / 2 * 255), clipped to 0..255",
    "stored": "8-bit pictures as stored",
}
SPLITS_IN_WORDS = {
    "torch-fidelity": "logits without bias, shuffled with seed 2020, 10 splits",
    "adm": "logits without bias, one fixed permutation (seed 2020), chunks of 5,000",
}


@dataclass(frozen=True)
class EvalResult:
    """Scores of one set of pictures.

    `metrics` has fid, inception_score (and _std), precision, recall, kid (and _std), as far as network and reference
    allow them; `protocol`, `reference`, `source` and `software` say how they came about.
    """

    metrics: dict[str, float]
    distance_name: str
    num_images: int
    protocol: dict[str, Any]
    reference: dict[str, Any]
    source: dict[str, Any]
    software: dict[str, str]
    warnings: list[str]

    def record(self) -> dict[str, Any]:
        """The result as a JSON object."""
        return asdict(self)


def score_features(
    features: Float[np.ndarray, "images dim"],
    blank: Bool[np.ndarray, " images"],
    extractor: Extractor,
    reference: Reference,
    *,
    image_size: int,
    inception_splits: str,
    rounding: str,
    source: dict[str, Any],
) -> EvalResult:
    """Return the scores of features in picture order; raises UsageError for a reference that does not compare."""
    require_finite(features)
    if extractor.name == "pixels" and features.shape[1] == 3 * reference.gaussian.dim:
        features = merge_grey_channels(features)
    count, dim = features.shape
    warnings = check_comparable(reference, extractor, image_size=image_size, dim=dim)
    warnings += warnings_about(features, blank)
    metrics = {"fid": frechet_distance(gaussian_from_features(features), reference.gaussian)}
    if extractor.classifier is not None:
        order, edges = SPLITS[inception_splits](count)
        if (np.diff(edges) == 0).any():
            warnings.append(f"No Inception Score: {count} pictures do not fill its {len(edges) - 1} splits.")
        else:
            logits = features.astype(np.float64) @ extractor.classifier.T
            score = inception_score(logits, order=order, edges=edges)
            metrics |= {"inception_score": score.mean, "inception_score_std": score.std}
    if reference.features is not None:
        if min(count, len(reference.features)) > NEIGHBOURS:
            precision, recall = precision_recall(features, reference.features, neighbours=NEIGHBOURS)
            metrics |= {"precision": precision, "recall": recall}
        else:
            warnings.append(f"No precision and recall: they need more than {NEIGHBOURS} pictures on either side.")
        subsets = fidelity_subsets(count, len(reference.features))
        distance = kernel_distance(features, reference.features, subsets=subsets)
        metrics |= {"kid": distance.mean, "kid_std": distance.std}
    return EvalResult(
        metrics=metrics,
        distance_name=distance_name(extractor, count),
        num_images=count,
        protocol={
            **extractor.identity,
            "inception_score": SPLITS_IN_WORDS[inception_splits] if extractor.classifier is not None else None,
            "precision_recall": f"k = {NEIGHBOURS} nearest neighbours",
            "kid": "100 subsets of at most 1,000, seed 2020, cubic kernel, unbiased",
            "rounding": ROUNDING[rounding],
            "image_size": image_size,
            "num_images_of_the_paper": count == PAPER_NUM,
        },
        reference=reference.record(),
        source=source,
        software=software_versions(),
        warnings=warnings,
    )


def distance_name(extractor: Extractor, count: int) -> str:
    """Return what to call the Frechet distance; the number of pictures is part of the name, since it biases it."""
    thousands, rest = divmod(count, 1000)
    suffix = f"{thousands}k" if thousands and not rest else f"{count}"
    if extractor.name == "inception":
        kind = "FID" if extractor.protocol == "legacy_tensorflow" else f"FID({extractor.protocol})"
        return f"{kind}-{suffix}"
    return f"FD({extractor.name})-{suffix}"


def warnings_about(features: Float[np.ndarray, "images dim"], blank: Bool[np.ndarray, " images"]) -> list[str]:
    """Return sentences about sets whose scores mean less than they seem to."""
    count, dim = features.shape
    warnings = []
    if count < dim:
        warnings.append(
            f"{count:,} pictures are fewer than the {dim:,} feature dimensions: the Frechet distance is exact for "
            "these pictures, but says little about the distribution."
        )
    if blank.any():
        warnings.append(f"{int(blank.sum()):,} of {count:,} pictures show one single colour.")
    if (features == features[0]).all():
        warnings.append("All pictures have the same features: the model makes one picture, or the set is one picture.")
    return warnings


def summarize(results: Sequence[EvalResult]) -> dict[str, dict[str, float]]:
    """Return mean, spread (standard deviation, n - 1) and number of seeds of every metric over several seeds."""
    summary = {}
    for name in results[0].metrics:
        values = [result.metrics[name] for result in results]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        summary[name] = {"mean": statistics.fmean(values), "spread": spread, "seeds": len(values)}
    return summary


def software_versions() -> dict[str, str]:
    """Return the versions that a score may depend on."""
    return {
        "marcli": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "clean-fid": version("clean-fid"),
        "platform": f"{sys.platform} {platform.machine()}",
    }
