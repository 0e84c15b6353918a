"""What `eval-fid` was asked for; combinations without meaning are refused before anything is loaded."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from marcli.errors import UsageError
from marcli.runtime.home import at_home
from marcli.runtime.writable import check_place
from marcli.sampling.naming import EngineName, Weights

Protocol = Literal["legacy_tensorflow", "clean", "legacy_pytorch"]
InceptionSplits = Literal["torch-fidelity", "adm"]


@dataclass(frozen=True, kw_only=True)
class EvalRequest:
    """What the command line asked for; a default here is the option's.

    `run` is a run's folder, weights or a published name, None for the newest run; for statistics a recipe, too.
    `overrides` change its recipe. `num` is at least 2; None stands for all of the pictures that exist, and for 50,000
    of a run. `out` is where results go, None for a folder beside what is measured.
    """

    run: str | None
    overrides: tuple[str, ...]
    images: str | None
    reference: str | None
    make_stats: Path | None
    num: int | None
    image_size: int | None
    out: Path | None
    seeds: tuple[int, ...] = (0,)
    classes: str = "all"
    weights: Weights = "ema"
    engine: EngineName = "auto"
    features: str = "inception"
    protocol: Protocol = "legacy_tensorflow"
    inception: Path | None = None
    inception_sha256: str | None = None
    inception_splits: InceptionSplits = "torch-fidelity"
    feature_weights: Path | None = None

    @property
    def mode(self) -> Literal["statistics", "pictures", "run"]:
        """Make statistics, measure pictures that exist, or those that a run makes."""
        if self.make_stats is not None:
            return "statistics"
        return "run" if self.images is None else "pictures"

    def given(self, *names: str) -> list[str]:
        """Those of these options that differ from their default, as they are typed."""
        changed = [name for name in names if getattr(self, name) != getattr(EvalRequest, name)]
        return [f"--{name.replace('_', '-')}" for name in changed]


def check_request(request: EvalRequest) -> None:
    """Raise UsageError for what has no meaning, is not there or cannot be written."""
    check_inputs(request)
    check_network_options(request)
    if request.mode != "run":
        check_no_making(request)
    if request.mode == "pictures":
        check_place(results_folder(request.images, request.out))
    elif request.out is not None:
        check_place(request.out)


def check_inputs(request: EvalRequest) -> None:
    """Raise UsageError for pictures, a reference and places that do not go together."""
    run, images, reference, make_stats = request.run, request.images, request.reference, request.make_stats
    for option, place in (("--images", images), ("--reference", reference)):
        if place is not None:
            check_is_there(option, place)
    if images is not None and run is not None:
        raise UsageError(f"Give a run ({run}) or --images {images}, not both.")
    if images is not None and request.overrides:
        raise UsageError(f"{request.overrides[0]} changes how pictures are made, but --images are made already.")
    if make_stats is None:
        if images is None and request.image_size is not None:
            raise UsageError("--image-size crops --images, and a run's pictures have their size: leave it out.")
        if images is not None and reference is None:
            raise UsageError("--images need a --reference to be compared with.")
        return
    if make_stats.suffix != ".npz":
        name = make_stats.with_suffix(".npz") if make_stats.name else "OUT.npz"
        raise UsageError(f"--make-stats writes an npz: call it {name}.")
    if make_stats.is_dir():
        raise UsageError(f"--make-stats writes a file, and {make_stats} is a folder: choose another name.")
    check_place(make_stats.parent, option="--make-stats")
    if reference is not None:
        raise UsageError("--make-stats makes a reference and compares with none: leave --reference out.")
    if request.out is not None:
        raise UsageError("--make-stats names the one file that it writes: leave --out out.")
    if images is None and run is None:
        raise UsageError("--make-stats needs pictures: --images DIR, NPZ or data set, or a recipe for its data.")


def check_is_there(option: str, place: str) -> None:
    """Raise UsageError for pictures or statistics that cannot be there, before a network is downloaded for them."""
    if not place.strip():
        raise UsageError(f"{option} is empty: give a folder, an npz or a data set.")
    path = at_home(place)
    or_make = ", or make statistics with --make-stats" if option == "--reference" else ""
    if path.suffix == ".npz" and not path.is_file():
        raise UsageError(f"{option}: there is no file {path}: check the path{or_make}.")
    if place.startswith(("/", ".", "~")) and not path.exists():
        raise UsageError(f"{option}: there is no {path}: check the path{or_make}.")


def check_no_making(request: EvalRequest) -> None:
    """Raise UsageError for an option that says how a run makes pictures, where none makes any."""
    pictures = "the pictures of a data set" if request.images is None else f"--images {request.images}"
    for option in request.given("seeds", "classes", "weights", "engine"):
        raise UsageError(f"{option} says how a run makes pictures, but {pictures} are made already: leave it out.")


def check_network_options(request: EvalRequest) -> None:
    """Raise UsageError for an option of a feature network that does not measure here."""
    features = request.features
    of_inception = request.given("protocol", "inception", "inception_sha256", "inception_splits")
    of_timm = request.given("feature_weights")
    is_timm = features == "dinov2" or features.startswith("timm:")
    for options, goes_with, is_chosen in (
        (of_inception, "inception", features == "inception"),
        (of_timm, "dinov2 or timm:NAME", is_timm),
    ):
        if options and not is_chosen:
            raise UsageError(f"{options[0]} goes with --features {goes_with}, not with {features}: leave it out.")


def check_reference(system: str, reference: str | None) -> None:
    """Raise UsageError where nothing says what the pictures of a system are to be compared with."""
    if reference is None and not Path(system).is_dir():
        raise UsageError(
            f"{system} does not come with the pictures it was trained on: give --reference, for ImageNet ADM's "
            "VIRTUAL_imagenet256_labeled.npz."
        )


def results_folder(images: str, out: Path | None) -> Path:
    """Where the results of existing pictures go: into a folder named after them, beside them, even for `.` and `..`."""
    from marcli.data.listing import RESULTS

    place = at_home(images)
    place = place if place.name not in ("", "..") else Path(os.path.abspath(place))
    return out or Path(f"{place}{RESULTS}")


def only_run(names: list[str]) -> str | None:
    """Return the one run that was named, if any; raises UsageError for several."""
    if len(names) > 1:
        raise UsageError(f"eval-fid measures one run at a time, not {' and '.join(names)}.")
    return names[0] if names else None


def parse_count(text: str | None) -> int | None:
    """Return the number in '5000' or '5k'; raises UsageError."""
    if text is None:
        return None
    digits, thousands = (text[:-1], 1000) if text[-1:] in ("k", "K") else (text, 1)
    if not is_number(digits) or int(digits) * thousands < 2:
        raise UsageError(f"--num {shortened(text)}: give a number of pictures of at least 2, such as 50000 or 5k.")
    return int(digits) * thousands


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the numbers in '0,1,2'; raises UsageError."""
    parts = [part.strip() for part in text.split(",")]
    seeds = tuple(int(part) for part in parts if is_number(part))
    if len(set(seeds)) != len(parts):
        raise UsageError(f"--seeds {shortened(text)}: give different whole numbers such as 0,1,2.")
    return seeds


def is_number(text: str) -> bool:
    """Tell whether `text` is a whole number of at most 18 digits: those fit 64 bits everywhere."""
    return text.isdecimal() and len(text) <= 18


def shortened(text: str) -> str:
    """Return what was typed, quoted, without the middle of a very long one."""
    return repr(text if len(text) <= 40 else f"{text[:20]}...{text[-10:]}")
