"""A system's pictures to scores, without pictures on disk: `evaluate(generate(...))`, resumable.

Pictures and features are computed in the same units of indices as `sample` uses for its micro-batches, so evaluating on
the fly and evaluating the written PNGs see the same pictures.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from marcli import __version__
from marcli.metrics.collect import Collected, collect
from marcli.metrics.extract import FeatureBatch, extract_images
from marcli.metrics.features import Extractor
from marcli.runtime.accelerator import Processes
from marcli.sampling.engine.base import Engine
from marcli.sampling.generate import generate, micro_batches
from marcli.sampling.system import Named, System


def picture_settings(
    system: System, engine: Engine, *, seed: int, classes: Sequence[int], precision: str
) -> dict[str, object]:
    """Return everything that the pictures of a seed depend on, as JSON values."""
    return {
        "weights": system.weights,
        "weights_sha256": system.weights_sha256,
        "tokenizer": system.tokenizer.fingerprint,
        "note": system.note,
        "sample": system.recipe.sample.model_dump(mode="json", exclude={"num"}),
        "seed": seed,
        "classes": list(classes),
        "engine": engine.name,
        "precision": precision,
    }


def evaluation_folder(system: Named | System) -> Path:
    """Return where a system's evaluations lie: in its run, or under eval/ for weights that came from elsewhere."""
    run = Path(system.name)
    return run / "eval" if run.is_dir() else Path("eval") / system.recipe.name


def colours_of(system: System) -> UInt8[Tensor, "1 channels side side"]:
    """Return a picture of random colours as the tokenizer gives it back: grey where samples cannot be in colour."""
    data, tokenizer = system.recipe.data, system.tokenizer
    shape = (1, data.channels, data.image_size, data.image_size)
    noise = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return tokenizer.decode(tokenizer.sample(tokenizer.encode(noise), None))


def collect_samples(
    system: System,
    engine: Engine,
    extractor: Extractor,
    *,
    seed: int,
    num: int,
    classes: Sequence[int],
    folder: Path,
    processes: Processes,
) -> Collected | None:
    """Return the features of pictures 0..num-1 of `seed`, generating those not in `folder`; on the main process only.

    Raises StoppedError after a signal, with everything finished kept: the same call continues with the same pictures.
    """
    units = micro_batches(num, system.recipe.sample.batch_size)
    tokenizer = system.tokenizer.to(engine.device, memory_format=torch.channels_last)

    def produce(wanted: Sequence[Sequence[int]]) -> Iterator[FeatureBatch]:
        for pictures in generate(engine, tokenizer, classes=classes, seed=seed, batches=wanted):
            yield extract_images(pictures.indices, pictures.images, extractor)

    settings = {
        **picture_settings(system, engine, seed=seed, classes=classes, precision=processes.precision),
        **extractor.identity,
        "marcli": __version__,
        "torch": torch.__version__,
    }
    return collect(
        units, produce, folder=folder, settings=settings, processes=processes, title=f"samples of seed {seed}"
    )
