"""`marcli tokenize`."""

from typing import Annotated

import typer

from marcli.cli.options import AsJson, Gpus, NumProcesses, Precision
from marcli.errors import MarcliError


def tokenize(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A folder, parquet file, hub id, or digits.")],
    gpus: Gpus = "auto",
    processes: NumProcesses = 1,
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Judge a tokenizer on your images: round trip, PSNR, SSIM, rFID, the latent scale, code usage."""
    raise MarcliError("tokenize is not built yet.")
