"""A folder of pictures belongs to one plan: everything that decides them, by whatever path the run was named.

So the pictures of two calls never mix, and a call that was interrupted goes on. The plan lies in `plan.json` while
pictures are missing, afterwards in `samples.json`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from marcli.errors import UsageError
from marcli.metrics.pictures import SAMPLE_NAME
from marcli.runtime.atomic import remove_partials, write_json
from marcli.runtime.lock import exclusive
from marcli.sampling.album import picture_path

PLAN, RECORD = "plan.json", "samples.json"
DECIDES_NOTHING = ("system", "note", "num", "images")  # the hashes say which system it was
ALWAYS_MADE = (RECORD, "grid.png")
MADE_WHEN_ASKED = ("samples.npz", "animation.gif")


@contextmanager
def own_folder(folder: Path, plan: Mapping[str, Any], *, num: int) -> Iterator[None]:
    """Be the only one that writes to `folder`, prepared for this plan.

    Raises UsageError when it holds numbered pictures that no plan made, MarcliError when another process has it.
    """
    refuse_foreign(folder)
    with exclusive(folder / "lock"):
        remove_partials(folder)
        prepare_folder(folder, plan, num=num)
        yield


def refuse_foreign(folder: Path) -> None:
    """Raise UsageError when `folder` holds numbered pictures that no plan made."""
    pictures = numbered_pictures(folder)
    if pictures and read_plan(folder) is None:
        raise UsageError(
            f"{folder} holds numbered pictures, such as {pictures[0].name}, that `marcli sample` did not write: choose "
            "another --out"
        )


def numbered_pictures(folder: Path) -> list[Path]:
    """Pictures with names such as `marcli sample` gives."""
    return [path for path in folder.glob("*.png") if SAMPLE_NAME.fullmatch(path.name)]


def prepare_folder(folder: Path, plan: Mapping[str, Any], *, num: int) -> None:
    """Leave in `folder` only what this plan made, of pictures below `num`, and note the plan.

    What was made of the same pictures in a former call, and may not be asked for again, stays.
    """
    is_same = read_plan(folder) == deciding(json.loads(json.dumps(plan)))
    is_complete = is_same and complete_num(folder) == num
    # Killed between any two of these, the folder still says whose pictures it holds.
    for path in numbered_pictures(folder):
        if not is_same or int(path.stem) >= num:
            path.unlink()
    write_json(folder / PLAN, plan)
    for name in ALWAYS_MADE if is_complete else ALWAYS_MADE + MADE_WHEN_ASKED:
        (folder / name).unlink(missing_ok=True)


def read_plan(folder: Path) -> dict[str, Any] | None:
    """What decides a folder's pictures; None where no plan says so."""
    for name in (PLAN, RECORD):
        if (folder / name).exists():
            try:
                facts = json.loads((folder / name).read_text())
            except ValueError:
                return None
            return deciding(facts) if isinstance(facts, dict) and "marcli" in facts else None
    return None


def complete_num(folder: Path) -> int | None:
    """The number of pictures of a complete folder that has a plan; None where some are missing."""
    return None if (folder / PLAN).exists() else json.loads((folder / RECORD).read_text()).get("num")


def deciding(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a plan or a record that decides what a picture shows."""
    return {key: value for key, value in plan.items() if key not in DECIDES_NOTHING}


def finish_folder(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a complete folder in the plan's place."""
    write_json(folder / RECORD, record)
    (folder / PLAN).unlink(missing_ok=True)


def missing_batches(batches: Sequence[range], folder: Path, *, batch_size: int) -> list[range]:
    """Micro-batches that have to be made: those with a picture missing, and one that `num` cuts short.

    A cut one may hold pictures of a longer one, which were computed among other neighbours.
    """
    return [
        batch
        for batch in batches
        if len(batch) < batch_size or not all(picture_path(folder, index).exists() for index in batch)
    ]
