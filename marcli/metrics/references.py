"""What samples are compared with: ADM's files, statistics made here, or pictures.

A reference knows which network, protocol and picture size it was made with, and is refused for any other. Files that
say none of that are taken as ADM's (Inception, TensorFlow's resizing), with a warning otherwise.
`VIRTUAL_imagenet256_labeled.npz` holds both kinds of knowledge: moments of the training set and 10,000 pictures.
"""

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from marcli.errors import MarcliError, UsageError
from marcli.metrics.features import Extractor, merge_grey_channels
from marcli.metrics.frechet import cholesky_or_none
from marcli.metrics.inception import PUBLISHED
from marcli.metrics.pictures import (
    ArchivePictures,
    PictureSource,
    archive_names,
    chosen_indices,
    open_pictures,
    read_arrays,
    training_pictures,
)
from marcli.metrics.statistics import Gaussian, gaussian_from_features
from marcli.metrics.streamed import stream_features
from marcli.recipe.data import Data
from marcli.runtime.accelerator import Processes
from marcli.runtime.atomic import atomic_file, sha256_file, write_json
from marcli.runtime.home import at_home
from marcli.runtime.user_cache import user_cache

logger = logging.getLogger("marcli.metrics")

KEPT_FEATURES = 10_000
ADM_PROTOCOL = ("inception", "legacy_tensorflow")


@dataclass(frozen=True)
class Reference:
    """The distribution that samples are compared with.

    Attributes:
        name: where it came from
        sha256: hash of the named file of statistics or pictures; of others, `PictureSource.fingerprint`
        gaussian: moments of its features
        features: features of (at most 10,000 of) its pictures, or None where only moments are known
        image_size: side of its pictures, or None where the file does not say
        identity: network and protocol, as `Extractor.identity`; None values are not stated
        stated: whether the file itself states its identity
    """

    name: str
    sha256: str
    gaussian: Gaussian
    features: Float[np.ndarray, "images dim"] | None
    image_size: int | None
    identity: dict[str, Any]
    stated: bool

    def record(self) -> dict[str, Any]:
        """What a result says about its reference."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "num_images": self.gaussian.count,
            "num_images_for_precision_recall": None if self.features is None else len(self.features),
            "image_size": self.image_size,
            **self.identity,
            "protocol_stated_in_file": self.stated,
        }


def read_statistics(path: Path) -> Reference:
    """Return the reference in a mu/sigma npz, ADM's or ours; raises UsageError or MarcliError, and never unpickles."""
    arrays = read_arrays(path, ["mu", "sigma", "features", "metadata"])
    if not {"mu", "sigma"} <= arrays.keys():
        raise MarcliError(f"{path} has no mu and sigma; it has {', '.join(archive_names(path)) or 'nothing'}.")
    for name in arrays.keys() - {"metadata"}:
        if arrays[name].dtype.kind not in "fiu":
            raise MarcliError(f"{path}: {name} is {arrays[name].dtype}, not real numbers; statistics are those.")
    mean, covariance = (np.asarray(arrays[name], dtype=np.float64) for name in ("mu", "sigma"))
    if mean.ndim != 1 or not len(mean) or covariance.shape != (len(mean), len(mean)):
        raise MarcliError(f"{path}: mu {list(mean.shape)} and sigma {list(covariance.shape)} do not belong together.")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise MarcliError(f"{path}: mu or sigma holds NaN or infinity.")
    if not is_covariance(covariance):
        raise MarcliError(
            f"{path}: sigma is no covariance, which is symmetric without negative eigenvalues: make it anew."
        )
    features = arrays.get("features")
    if features is not None and (features.ndim != 2 or features.shape[1] != len(mean)):
        raise MarcliError(f"{path}: features {list(features.shape)} and mu {list(mean.shape)} do not belong together.")
    stated = stated_facts(arrays.get("metadata"))
    gaussian = Gaussian(mean=mean, covariance=covariance, factor=None, count=stated.get("num_images"))
    if features is not None and len(features) == gaussian.count:
        gaussian = gaussian_from_features(features)  # with the thin factor, where there are few pictures
    return Reference(
        name=str(path),
        sha256=sha256_file(path),
        gaussian=gaussian,
        features=features,
        image_size=stated.get("image_size"),
        identity={key: stated.get(key) for key in ("features", "protocol", "weights_sha256")},
        stated=bool(stated),
    )


def is_covariance(matrix: Float[np.ndarray, "dim dim"]) -> bool:
    """Tell whether a matrix is symmetric without negative eigenvalues, but for the rounding of a file in fp32.

    Cholesky's factor of the matrix with that much more on its diagonal exists just then, in a third of the time of the
    eigenvalues.
    """
    rounding = 1e-6 * np.linalg.norm(matrix)
    if np.abs(matrix - matrix.T).max() > rounding:
        return False
    return not rounding or cholesky_or_none(matrix + rounding * np.eye(len(matrix))) is not None


def stated_facts(metadata: np.ndarray | None) -> dict[str, Any]:
    """Return what `write_statistics` stored with the moments; {} for files of others."""
    try:
        facts = json.loads(str(metadata))
    except json.JSONDecodeError:
        return {}
    texts_and_numbers = isinstance(facts, dict) and all(isinstance(fact, str | int | None) for fact in facts.values())
    return facts if texts_and_numbers else {}


def open_reference(
    place: str | Data, extractor: Extractor, *, image_size: int, processes: Processes, workers: int
) -> Reference | None:
    """Return the reference that `place` names, checked against network and picture size; on the main process only.

    `place` is an npz of statistics or pictures, a folder, a data set, or the data of a recipe. Statistics of pictures
    are kept in the user's cache. Raises UsageError for a reference that does not compare.
    """
    if isinstance(place, str) and place.endswith(".npz"):
        path = at_home(place)
        reference = read_reference(path, extractor, image_size=image_size, processes=processes, workers=workers)
    else:
        is_data = isinstance(place, Data)
        source = training_pictures(place) if is_data else open_pictures(place, image_size=image_size)
        reference = measure_once(source, extractor, processes=processes, workers=workers)
    if reference is not None:
        blank = np.zeros((1, 3, image_size, image_size), dtype=np.uint8)
        dim = extractor(torch.from_numpy(blank)).shape[1]
        is_grey = extractor.name == "pixels" and reference.gaussian.dim * 3 == dim
        check_comparable(reference, extractor, image_size=image_size, dim=dim // 3 if is_grey else dim)
    return reference


def measure_once(
    source: PictureSource, extractor: Extractor, *, processes: Processes, workers: int
) -> Reference | None:
    """Return the statistics of a set of pictures, from the cache where a network made them before; as `measure`."""
    if extractor.weights_sha256 is None:
        return measure(source, extractor, num=None, processes=processes, workers=workers)
    facts = json.dumps([source.fingerprint, source.image_size, extractor.identity], sort_keys=True)
    path = user_cache() / "references" / f"{hashlib.sha256(facts.encode()).hexdigest()[:16]}.npz"
    kept = read_kept(path) if processes.is_main else None
    if processes.any(processes.is_main and kept is None):
        kept = measure(source, extractor, num=None, processes=processes, workers=workers)
        if kept is not None:
            keep(kept, path)
    return None if kept is None else replace(kept, name=source.name, sha256=source.fingerprint)


def keep(reference: Reference, path: Path) -> None:
    """Write statistics into the cache; one that takes none (a quota, a read-only home) costs no measurement."""
    try:
        write_statistics(reference, path)
    except OSError as error:
        logger.warning("%s cannot be written (%s): the reference is measured anew each time", path, error.strerror)


def read_kept(path: Path) -> Reference | None:
    """Return statistics from the cache; None where there are none, or where they differ from the hash beside them."""
    try:
        expected = json.loads(path.with_suffix(".json").read_text())["sha256"]
        if sha256_file(path) == expected:
            return read_statistics(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, MarcliError):
        pass
    logger.warning("%s is damaged: the reference is measured again", path)
    return None


def read_reference(
    path: Path, extractor: Extractor, *, image_size: int, processes: Processes, workers: int
) -> Reference | None:
    """Return the reference in an npz of statistics, of pictures, or of both as ADM's; on the main process only."""
    names = archive_names(path)
    moments = read_statistics(path) if {"mu", "sigma"} <= set(names) else None
    if "arr_0" not in names:
        return moments or read_statistics(path)
    source = ArchivePictures(path)
    check_size(source.name, source.image_size, image_size)
    pictures = measure_once(source, extractor, processes=processes, workers=workers)
    if pictures is None or moments is None:
        return pictures
    return replace(moments, features=pictures.features, image_size=source.image_size)


def measure(
    source: PictureSource, extractor: Extractor, *, num: int | None, processes: Processes, workers: int
) -> Reference | None:
    """Return the moments of a set of pictures and the features of at most 10,000 of them; on the main process only.

    All processes take part. Moments are streamed, so that any number of pictures fits in memory; the 10,000 are a
    fixed choice from all (seed 0).
    """
    indices = chosen_indices(source, num)
    kept = indices
    if len(indices) > KEPT_FEATURES:
        kept = np.sort(np.random.RandomState(0).permutation(indices)[:KEPT_FEATURES])
    moments, rows = stream_features(source, indices, kept, extractor, processes=processes, workers=workers)
    if not processes.is_main:
        return None
    features = np.stack([rows[index] for index in kept.tolist()])
    if len(kept) == len(indices):
        features = merge_grey_channels(features) if extractor.name == "pixels" else features
        gaussian = gaussian_from_features(features)
    else:
        gaussian = moments.gaussian()
        assert gaussian.count == len(indices), f"moments of {gaussian.count} pictures instead of {len(indices)}"
        if extractor.name == "pixels" and has_equal_channels(gaussian):
            features, gaussian = merge_grey_channels(features), first_channel(gaussian)
    return Reference(
        name=source.name,
        sha256=source.fingerprint,
        gaussian=gaussian,
        features=features,
        image_size=source.image_size,
        identity=extractor.identity,
        stated=True,
    )


def has_equal_channels(gaussian: Gaussian) -> bool:
    """Tell whether the three channels of raw pixels never differ: their differences have no mean and no variance."""
    red, *others = gaussian.mean.reshape(3, -1)
    variance = np.diagonal(gaussian.covariance).reshape(3, -1)
    for number, other in enumerate(others, start=1):
        shared = np.diagonal(gaussian.covariance, offset=number * len(red))[: len(red)]
        difference = variance[0] + variance[number] - 2 * shared
        if not (np.allclose(red, other, atol=1e-9) and np.allclose(difference, 0, atol=1e-9)):
            return False
    return True


def first_channel(gaussian: Gaussian) -> Gaussian:
    """Return the moments of one of three equal channels."""
    dim = gaussian.dim // 3
    return Gaussian(gaussian.mean[:dim], gaussian.covariance[:dim, :dim], None, gaussian.count)


def write_statistics(reference: Reference, path: Path) -> Path:
    """Write mu, sigma, the kept features and what they are as one npz, and the same facts as JSON beside it.

    `path` ends in .npz. Returns the path of the JSON file, which also holds the npz's hash.
    """
    facts = {
        **reference.identity,
        "source": reference.name,
        "source_sha256": reference.sha256,
        "num_images": reference.gaussian.count,
        "image_size": reference.image_size,
        "dim": reference.gaussian.dim,
        "kept_features": 0 if reference.features is None else len(reference.features),
        "torch": torch.__version__,
    }
    arrays = {"mu": reference.gaussian.mean, "sigma": reference.gaussian.covariance}
    if reference.features is not None:
        arrays["features"] = reference.features
    with atomic_file(path) as incomplete:
        np.savez(incomplete, **arrays, metadata=np.array(json.dumps(facts, sort_keys=True)))
    beside = path.with_suffix(".json")
    write_json(beside, {**facts, "sha256": sha256_file(path)})
    return beside


def check_size(name: str, theirs: int | None, ours: int) -> None:
    """Raise UsageError when a reference has pictures of another side; None is not known."""
    if theirs is not None and theirs != ours:
        raise UsageError(
            f"The reference {name} was made from pictures of {theirs} pixels, and the samples have {ours}: make one "
            "for this size with --make-stats."
        )


def check_colour(reference: Reference, pictures: UInt8[Tensor, "batch channels side side"]) -> None:
    """Raise UsageError where raw pixels of grey pictures would be compared with any of these in colour."""
    is_colour = bool((pictures != pictures[:, :1]).any())
    if is_colour and reference.gaussian.dim == pictures[0, 0].numel():
        raise UsageError(
            f"The reference {reference.name} holds grey pictures only, and the samples are in colour: their pixels do "
            "not compare. Give a --reference in colour, or measure with --features inception."
        )


def check_comparable(reference: Reference, extractor: Extractor, *, image_size: int, dim: int) -> list[str]:
    """Raise UsageError for a reference of another network, protocol, dimension or picture size; return warnings.

    Warnings are published with a run (`--push-to`), so they name no folder.
    """
    theirs, ours = reference.identity, extractor.identity
    for key, what in (("features", "features"), ("protocol", "protocol")):
        if theirs[key] is not None and theirs[key] != ours[key]:
            raise UsageError(
                f"The reference {reference.name} was made with {what} {theirs[key]!r}, and the samples are measured "
                f"with {ours[key]!r}: such numbers do not compare. Make one with --make-stats, or change --{what}."
            )
    check_size(reference.name, reference.image_size, image_size)
    other_weights = theirs["weights_sha256"] not in (None, ours["weights_sha256"])
    if other_weights and not {theirs["weights_sha256"], ours["weights_sha256"]} <= PUBLISHED.keys():
        raise UsageError(
            f"The reference {reference.name} was made with other weights of {extractor.name} (sha256 "
            f"{theirs['weights_sha256']}, and here {ours['weights_sha256']}): such numbers do not compare. Take the "
            "same weights, or make a reference with these by --make-stats."
        )
    if reference.gaussian.dim != dim:
        raise UsageError(
            f"The reference {reference.name} has {reference.gaussian.dim} dimensions and the samples' features {dim}: "
            "it was made with another feature network, or from pictures of another size or colour."
        )
    warnings = []
    if not reference.stated and (extractor.name, extractor.protocol) != ADM_PROTOCOL:
        warnings.append(
            f"{Path(reference.name).name} does not say which network and resizing it was made with; it is taken to be "
            f"{extractor.name}, {extractor.protocol}. Published files are inception, legacy_tensorflow."
        )
    if other_weights:
        warnings.append(
            f"The reference was made with the other published file of Inception ({theirs['weights_sha256']}), whose "
            "features differ slightly."
        )
    if reference.features is None:
        warnings.append(
            "Precision, recall and KID need features of single pictures, and this reference has only mu and sigma: "
            "give ADM's npz with the 10,000 pictures (VIRTUAL_imagenet256_labeled.npz), a folder, or statistics from "
            "--make-stats."
        )
    return warnings
