"""What may be given to `eval-fid`: combinations without meaning are refused before anything is loaded."""

from pathlib import Path

from marcli.errors import UsageError
from marcli.runtime.home import at_home
from marcli.runtime.writable import check_place


def check_inputs(
    names: list[str],
    overrides: list[str],
    *,
    images: str | None,
    reference: str | None,
    make_stats: Path | None,
    image_size: int | None,
    out: Path | None,
) -> None:
    """Raise UsageError for combinations that have no meaning, before anything is loaded."""
    if len(names) > 1:
        raise UsageError(f"eval-fid measures one run at a time, not {' and '.join(names)}.")
    for option, place in (("--images", images), ("--reference", reference)):
        if place is not None:
            check_is_there(option, place)
    if images is not None and names:
        raise UsageError(f"Give a run ({names[0]}) or --images {images}, not both.")
    if images is not None and overrides:
        raise UsageError(f"{overrides[0]} changes how pictures are made, but --images are made already.")
    if make_stats is None:
        if images is None and image_size is not None:
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
    if out is not None:
        raise UsageError("--make-stats names the one file that it writes: leave --out out.")
    if images is None and not names:
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


def check_unused(given: dict[str, bool], *, images: str | None) -> None:
    """Raise UsageError for an option that says how a run makes pictures, where none makes any."""
    pictures = "the pictures of a data set" if images is None else f"--images {images}"
    for option, is_given in given.items():
        if is_given:
            raise UsageError(f"{option} says how a run makes pictures, but {pictures} are made already: leave it out.")


def check_networks_options(features: str, *, of_inception: dict[str, bool], of_timm: dict[str, bool]) -> None:
    """Raise UsageError for an option of a feature network that does not measure here."""
    is_timm = features == "dinov2" or features.startswith("timm:")
    for given, goes_with, is_chosen in (
        (of_inception, "inception", features == "inception"),
        (of_timm, "dinov2 or timm:NAME", is_timm),
    ):
        for option, is_given in given.items():
            if is_given and not is_chosen:
                raise UsageError(f"{option} goes with --features {goes_with}, not with {features}: leave it out.")


def parse_count(text: str | None) -> int | None:
    """Return the number in '5000' or '5k'; raises UsageError."""
    if text is None:
        return None
    digits, thousands = (text[:-1], 1000) if text[-1:] in ("k", "K") else (text, 1)
    if not is_number(digits) or int(digits) * thousands < 2:
        raise UsageError(f"--num {shortened(text)}: give a number of pictures of at least 2, such as 50000 or 5k.")
    return int(digits) * thousands


def parse_seeds(text: str) -> list[int]:
    """Return the numbers in '0,1,2'; raises UsageError."""
    parts = [part.strip() for part in text.split(",")]
    seeds = [int(part) for part in parts if is_number(part)]
    if len(set(seeds)) != len(parts):
        raise UsageError(f"--seeds {shortened(text)}: give different whole numbers such as 0,1,2.")
    return seeds


def is_number(text: str) -> bool:
    """Tell whether `text` is a whole number of at most 18 digits: those fit 64 bits everywhere."""
    return text.isdecimal() and len(text) <= 18


def shortened(text: str) -> str:
    """Return what was typed, quoted, without the middle of a very long one."""
    return repr(text if len(text) <= 40 else f"{text[:20]}...{text[-10:]}")


def check_reference(system: str, reference: str | None) -> None:
    """Raise UsageError where nothing says what the pictures of a system are to be compared with."""
    if reference is None and not Path(system).is_dir():
        raise UsageError(
            f"{system} does not come with the pictures it was trained on: give --reference, for ImageNet ADM's "
            "VIRTUAL_imagenet256_labeled.npz."
        )
