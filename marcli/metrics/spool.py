"""Features on disk while they are being collected: an interrupted evaluation continues from them.

A folder per setting (its name is the hash of everything the features depend on), a file per unit of pictures, named by
them, written whole and with its own hash. Any number of processes add to it, and an evaluation of more pictures finds
what one of fewer left; a damaged file counts as missing.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from marcli.errors import MarcliError
from marcli.metrics.extract import FeatureBatch
from marcli.metrics.hashed import read_hashed, write_hashed
from marcli.runtime.atomic import write_json


class FeatureSpool:
    """Features of `units` (disjoint runs of picture indices) under `settings`, in `folder`."""

    def __init__(self, folder: Path, *, settings: dict[str, object], units: Sequence[Sequence[int]]) -> None:
        text = json.dumps(settings, sort_keys=True)
        self.path = folder / f"features-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        self.units = [[int(index) for index in unit] for unit in units]
        self.present: dict[int, FeatureBatch] = {}  # what was read, since reading and hashing 50,000 takes a while
        write_json(self.path / "settings.json", settings)

    def missing(self) -> list[int]:
        """Return the numbers of the units that are not there, having read those that are for `read_all`."""
        return [number for number in range(len(self.units)) if not self._is_present(number)]

    def write(self, number: int, batch: FeatureBatch) -> None:
        """Store a whole unit."""
        if batch.indices != self.units[number]:
            raise ValueError("a unit is written whole and in order")
        features, blank = np.ascontiguousarray(batch.features), batch.blank.astype(np.uint8)
        arrays = {"indices": np.array(batch.indices, dtype=np.int64), "features": features, "blank": blank}
        write_hashed(self._file(number), arrays)

    def read(self, number: int) -> FeatureBatch | None:
        """Return a unit, or None when it is missing or damaged."""
        names = ("indices", "features", "blank")
        arrays = read_hashed(self._file(number), names, consequence="its pictures are done again")
        if arrays is None:
            return None
        if arrays["indices"].tolist() != self.units[number]:
            return None  # another choice of pictures between the same first and last
        return FeatureBatch(self.units[number], arrays["features"], arrays["blank"].astype(bool))

    def read_all(self) -> tuple[Float[np.ndarray, "images dim"], Bool[np.ndarray, " images"]]:
        """Return all features in the order of the units; raises MarcliError when some are missing."""
        absent = sum(len(self.units[number]) for number in self.missing())
        if absent:
            raise MarcliError(
                f"The features of {absent} pictures are not in {self.path}: all processes must see the same folder. "
                "The same command continues."
            )
        batches = [self.present[number] for number in range(len(self.units))]
        return np.concatenate([b.features for b in batches]), np.concatenate([b.blank for b in batches])

    def _is_present(self, number: int) -> bool:
        if number not in self.present and (batch := self.read(number)) is not None:
            self.present[number] = batch
        return number in self.present

    def _file(self, number: int) -> Path:
        first, last = self.units[number][0], self.units[number][-1]
        return self.path / f"pictures-{first:06d}-{last:06d}.safetensors"
