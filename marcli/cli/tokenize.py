"""`marcli tokenize`: one or several tokenizers on the user's images, side by side."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marcli.cli.options import AsJson, Gpus, TokenizerPrecision
from marcli.cli.output import print_intent, print_result
from marcli.errors import UsageError
from marcli.runtime.launch import check_alone
from marcli.runtime.writable import check_place

if TYPE_CHECKING:
    from marcli.metrics.comparison import Judged
    from marcli.recipe.data import Data
    from marcli.recipe.tokenizer import Tokenizer as TokenizerSection

DEFAULT_SIDE = 256
LARGEST_SIDE = 16384


def tokenize(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="A folder, parquet file, hub id, or digits; or a recipe.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys to change where DATA is a recipe.")
    ] = None,
    tokenizer: Annotated[
        list[str] | None,
        typer.Option(
            help="pixels, kmeans, kl16, kl8, vq16 or consistency; kl16=PATH for weights of your own; or settings as in "
            "a recipe: '{kind: kmeans, codebook_size: 512}'. Repeat it to compare. Default: the recipe's, or kl16."
        ),
    ] = None,
    num: Annotated[int, typer.Option(min=1, help="Images to judge on, evenly spread over the set.")] = 256,
    image_size: Annotated[
        int | None,
        typer.Option(min=1, max=LARGEST_SIDE, help="Side of the centre crop; default: the pictures' own, at most 256."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of a hub data set or folder; default: the recipe's, or train.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images encoded together.")] = 16,
    features: Annotated[
        str, typer.Option(help="For rFID: inception (as published), pixels (no weights needed), or none.")
    ] = "pixels",
    inception: Annotated[Path | None, typer.Option(help="Inception's weights; default: downloaded once.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for roundtrip.png and tokenize.json.")] = Path("runs/tokenize"),
    gpus: Gpus = "auto",
    precision: TokenizerPrecision = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the tokenizers' settings, the pictures and where results go.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Judge a tokenizer on your images: round trip, PSNR, SSIM, rFID, the latent scale, code usage."""
    check_alone("tokenize")
    check_place(out)
    section, names = read_data(data, overrides or [], split=split)
    sections = [parse_tokenizer(text) for text in tokenizer] if tokenizer else names or [parse_tokenizer("kl16")]
    from marcli.data.images import native_size, open_images
    from marcli.recipe.tokenizer import TAKES_GREY, latent_shape
    from marcli.runtime.accelerator import start_processes

    if names is None:
        side, channels = native_size(section)
        takes_grey = all(isinstance(part, TAKES_GREY) for part in sections)
        section = section.model_copy(
            update={
                "image_size": image_size or largest_side(side, sections),
                "channels": channels if takes_grey else 3,
            }
        )
    elif image_size is not None:
        section = section.model_copy(update={"image_size": image_size})
    for part in sections:
        try:
            latent_shape(part, section.image_size, section.channels)
        except ValueError as error:
            raise UsageError(str(error) if names else f"{error}: give --image-size") from None
    images = open_images(section, labelled=False)
    if dry_run:
        print_settings(sections, section, min(num, len(images)), out, as_json=as_json)
        return
    processes = start_processes(precision="fp32" if precision == "auto" else precision, gpus=gpus)
    extractor = find_extractor(features, inception, processes.device)
    from marcli.metrics.comparison import SHOWN, evenly_chosen, judge

    chosen = evenly_chosen(images, num)
    settings = dict(extractor=extractor, batch_size=batch_size, processes=processes)
    judged = [judge(part, section, images, chosen, **settings) for part in sections]
    originals = next(images.batches(SHOWN, indices=chosen))[0]
    report(judged, originals, images=images, out=out, as_json=as_json)


def print_settings(sections: "list[TokenizerSection]", data: "Data", num: int, out: Path, *, as_json: bool) -> None:
    """Print what would be judged on which pictures, and the places that would be written."""
    from marcli.recipe.yaml_text import dump_yaml

    tokenizers = [part.model_dump(mode="json") for part in sections]
    typer.echo(dump_yaml({"tokenizers": tokenizers}), nl=False)
    facts = {"images": num, "data": data.path, "image_size": data.image_size, "channels": data.channels}
    places = {"picture": out / "roundtrip.png", "record": out / "tokenize.json"}
    print_intent(places, facts, {"tokenizers": tokenizers}, as_json=as_json)


def read_data(data: str, overrides: list[str], *, split: str | None) -> "tuple[Data, list[TokenizerSection] | None]":
    """Return the data section, and the tokenizer when DATA is a recipe, else None.

    Raises UsageError for overrides without a recipe.
    """
    from marcli.recipe.data import Data

    if Path(data).suffix in (".yaml", ".yml"):
        from marcli.recipe.reader import read_recipe

        recipe = read_recipe(data, overrides)
        return recipe.data.model_copy(update={"split": split} if split else {}), [recipe.tokenizer]
    if overrides:
        raise UsageError(
            f"{overrides[0]} would change a recipe, and {data} is none: give a recipe, or --image-size, --split and "
            "--tokenizer '{kind: kmeans, codebook_size: 512}'"
        )
    return Data(path=data, split=split or "train", image_size=DEFAULT_SIDE, num_classes=1), None


def parse_tokenizer(text: str) -> "TokenizerSection":
    """Return the tokenizer section that an option names; raises UsageError."""
    from marcli.recipe.reader import read_tokenizer
    from marcli.recipe.yaml_text import parse_yaml

    if text.lstrip().startswith("{"):
        return read_tokenizer(parse_yaml(text, f"--tokenizer {text!r}"), where="--tokenizer")
    kind, _, weights = text.partition("=")
    return read_tokenizer({"kind": kind} | ({"weights": weights} if weights else {}), where="--tokenizer")


def largest_side(side: int, sections: "list[TokenizerSection]") -> int:
    """Return the pictures' own side, at most 256, made smaller until every tokenizer divides it."""
    from marcli.recipe.tokenizer import latent_shape

    for candidate in range(min(side, DEFAULT_SIDE), 0, -1):
        try:
            for section in sections:
                latent_shape(section, candidate, 3)
        except ValueError:
            continue
        return candidate
    raise UsageError(f"the pictures have {side} pixels a side, too few for the tokenizer: give --image-size")


def find_extractor(features: str, inception: Path | None, device: Any) -> Any:
    """Return the feature extractor for rFID, or None."""
    if features == "none":
        return None
    from marcli.metrics.features import build_extractor

    return build_extractor(
        features,
        protocol="legacy_tensorflow",
        inception=inception,
        inception_sha256=None,
        feature_weights=None,
        device=device,
    )


def report(judged: "list[Judged]", originals: Any, *, images: Any, out: Path, as_json: bool) -> None:
    """Print the table and write the picture and the record."""
    import torch
    from rich.console import Console

    from marcli.runtime.atomic import write_json
    from marcli.sampling.album import write_grid

    Console(soft_wrap=True).print(table_of(judged))
    notes = [f"note: {each.name}: {each.note}" for each in judged if each.note]
    notes += [f"skipped {name}: {reason}" for name, reason in images.skipped]
    columns = len(judged[0].returned)
    write_grid(
        torch.cat([originals[:columns], *(each.returned for each in judged)]), out / "roundtrip.png", columns=columns
    )
    record = {
        "tokenizers": [{"name": each.name, **asdict(each.trip)} for each in judged],
        "notes": notes,
        "picture": str(out / "roundtrip.png"),
    }
    write_json(out / "tokenize.json", record)
    lines = [
        *notes,
        f"wrote {out / 'roundtrip.png'} (originals, then one row per tokenizer) and {out / 'tokenize.json'}",
    ]
    print_result(lines, record, as_json=as_json)


def table_of(judged: "list[Judged]") -> Any:
    """Return the table: one column per tokenizer, one row per figure."""
    from rich.table import Table

    trips = [each.trip for each in judged]
    first = trips[0]
    table = Table(title=f"round trip of {first.images:,} images", title_justify="left")
    table.add_column("")
    for each in judged:
        table.add_column(each.name, justify="right")
    table.add_row("PSNR, dB", *("exact" if trip.psnr is None else f"{trip.psnr:.2f}" for trip in trips))
    table.add_row("SSIM", *(f"{trip.ssim:.4f}" for trip in trips))
    table.add_row(f"rFID ({first.features or 'not measured'})", *(_figure(trip.rfid, ".2f") for trip in trips))
    table.add_row("latent std", *(_figure(trip.latent_std, ".4g") for trip in trips))
    table.add_row(
        "of a channel",
        *("-" if trip.channel_std is None else "{:.3g}..{:.3g}".format(*trip.channel_std) for trip in trips),
    )
    table.add_row("scale = 1/std", *(_figure(trip.measured_scale, ".4g") for trip in trips))
    table.add_row("scale used", *(_figure(trip.scale, ".4g") for trip in trips))
    table.add_row(
        "codes used", *("-" if not trip.codes else f"{trip.codes_used:,} of {trip.codes:,}" for trip in trips)
    )
    table.add_row("perplexity of codes", *(_figure(trip.perplexity, ",.1f") for trip in trips))
    table.add_row("encode, ms per image", *(f"{trip.encode_ms:,.2f}" for trip in trips))
    table.add_row("decode, ms per image", *(f"{trip.decode_ms:,.2f}" for trip in trips))
    return table


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
