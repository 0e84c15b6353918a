"""Tokenizers side by side: each one's round trip of the same pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import UInt8
from torch import Tensor

from marcli.data.images import ImageSet, evenly_spread
from marcli.errors import MarcliError
from marcli.metrics.features import Extractor
from marcli.metrics.roundtrip import RoundTrip, measure_round_trip
from marcli.recipe.data import Data
from marcli.recipe.tokenizer import Tokenizer as TokenizerSection
from marcli.runtime.accelerator import Processes
from marcli.runtime.progress import Progress
from marcli.tokenizer.build import new_tokenizer

SHOWN = 8  # pictures side by side


@dataclass(frozen=True)
class Judged:
    """What one tokenizer did to the pictures; `note` is about its weights."""

    name: str
    trip: RoundTrip
    returned: UInt8[Tensor, "shown channels side side"]
    note: str | None


def evenly_chosen(images: ImageSet, num: int) -> list[int]:
    """At most `num` images, evenly spread over the set; the first `SHOWN` are so, too, for they are the ones shown."""
    chosen = evenly_spread(len(images), num)
    shown = evenly_spread(len(chosen), SHOWN)  # those in front would be of one class
    return [chosen[place] for place in shown] + [index for place, index in enumerate(chosen) if place not in shown]


def judge(
    section: TokenizerSection,
    data: Data,
    images: ImageSet,
    chosen: Sequence[int],
    *,
    extractor: Extractor | None,
    batch_size: int,
    processes: Processes,
) -> Judged:
    """Measure the round trip of the chosen images; raises MarcliError when none of them can be read."""
    name = tokenizer_name(section)
    made = new_tokenizer(section, data, images, seed=0, device=processes.device)
    progress = Progress(title=name, total=len(chosen), unit="images", shown=True)

    def counted() -> Iterator[Tensor]:
        for pixels, _ in images.batches(batch_size, indices=chosen):
            yield pixels
            progress.advance(len(pixels))
        if progress.done == 0:
            raise MarcliError(
                f"{len(chosen)} of the {len(images):,} images in {data.path!r} were chosen, and none of these can "
                "be read: give a larger --num"
            )

    with progress, processes.accelerator.autocast():
        trip, returned = measure_round_trip(made, counted(), extractor=extractor, device=processes.device, keep=SHOWN)
    return Judged(name, trip, returned, made.weights_note)


def tokenizer_name(section: TokenizerSection) -> str:
    """Return a short name that tells tokenizers of one kind apart."""
    settings = section.model_dump(exclude_defaults=True, exclude={"kind", "weights", "scale"})
    return " ".join([section.kind, *(str(value) for value in settings.values())])
