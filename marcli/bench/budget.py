"""How much can be measured in the time there is: batch size, points and rounds.

Estimates come from the cost model and one large product on this machine, so nothing has to be tried first.
"""

from collections.abc import Sequence
from dataclasses import replace

from marcli.bench.cost import plain_cost
from marcli.bench.entries import Entry
from marcli.bench.plan import Variant, vary
from marcli.bench.points import described, diffusion_steps_of
from marcli.bench.request import Request
from marcli.bench.roofline import Machine
from marcli.errors import UsageError

SLACK = 2  # measured over least possible time of a small model, roughly
WARM_AND_TIMED = 2
SPEED_ROUNDS = 6
QUALITY_NUM = 2000


def expected_seconds(variants: Sequence[Variant], machine: Machine, batch_size: int) -> float:
    """Rough time of one round of batches."""
    flops = sum(plain_cost(variant.recipe, batch_size=batch_size).flops for variant in variants)
    return SLACK * flops * batch_size / machine.flops_per_second


def fitting_batch_size(variants: Sequence[Variant], machine: Machine, *, wanted: int, seconds: float) -> int:
    """The largest of wanted, wanted / 2, ... at which a warm-up and a timed round take less than `seconds`."""
    size = wanted
    while size > 1 and WARM_AND_TIMED * expected_seconds(variants, machine, size) > seconds:
        size //= 2
    return size


def affordable(variants: Sequence[Variant], machine: Machine, *, batch_size: int, seconds: float) -> list[Variant]:
    """The variants with the most expensive left out until a warm-up and a timed round fit; at least two stay."""
    kept = sorted(variants, key=lambda variant: plain_cost(variant.recipe, batch_size=batch_size).flops)
    while len(kept) > 2 and WARM_AND_TIMED * expected_seconds(kept, machine, batch_size) > seconds:
        kept.pop()
    return [variant for variant in variants if variant in kept]


def fit_to_time(entries: Sequence[Entry], request: Request, machine: Machine) -> tuple[list[Entry], list[str]]:
    """Choose one batch size for all, and leave out default step counts that no batch size makes affordable.

    What was asked for is measured, however long it takes, and so is what a baseline has. Returns the entries that
    are left, and lines. Raises UsageError where the baseline has none of the default step counts.
    """
    everything = [variant for entry in entries for variant in entry.variants]
    wanted = request.batch_size or entries[0].system.recipe.sample.batch_size
    size, kept, notes = wanted, everything, []
    if request.seconds is not None:
        limit = request.seconds / 2
        if request.batch_size is None:
            size = fitting_batch_size(everything, machine, wanted=wanted, seconds=limit)
        if request.steps is None and request.dit_steps is None and not request.sweep:
            if request.gated:
                kept = of_baseline(entries, request)
            else:
                kept = affordable(everything, machine, batch_size=size, seconds=limit)
    if size < wanted:
        notes.append(f"Batches of {size} instead of {wanted}, so that all points fit into the time")
    notes += [left_out(variant, gated=bool(request.gated)) for variant in everything if variant not in kept]
    resized = [
        replace(entry, variants=[resize(each, size) for each in entry.variants if each in kept]) for entry in entries
    ]
    remaining = [entry for entry in resized if entry.variants]
    if not remaining:
        raise UsageError(
            "The baseline has none of the points that would be measured: give the --steps or --dit-steps of its command"
        )
    return remaining, notes


def resize(variant: Variant, batch_size: int) -> Variant:
    """The variant in batches of another size."""
    return replace(variant, recipe=vary(variant.recipe, batch_size=batch_size))


def of_baseline(entries: Sequence[Entry], request: Request) -> list[Variant]:
    """The variants that a baseline has, and those of systems it does not know: no estimate decides what a gate sees."""
    known = {name for name, *_ in request.gated}
    return [
        variant
        for entry in entries
        for variant in entry.variants
        if entry.system.name not in known
        or (entry.system.name, variant.recipe.sampling_steps, diffusion_steps_of(variant.recipe)) in request.gated
    ]


def left_out(variant: Variant, *, gated: bool) -> str:
    """The line about a point that takes too long, or that the baseline does not have."""
    why = "the baseline does not have them (--steps asks for them)"
    if not gated:
        why = "they take too long here (--minutes allows more)"
    return f"{variant.recipe.name}: {described(variant)} left out, {why}"


def rounds_of(request: Request, batch_size: int, *, judged: bool) -> int:
    """Rounds including the warm-up, which counts for quality but not for time."""
    if not judged and request.num is None:
        return SPEED_ROUNDS
    return max(2, -(-judged_num(request) // batch_size))


def judged_num(request: Request) -> int:
    """Pictures of a point that are judged: as many as asked for, else as many as those of the baseline."""
    return request.num or request.gated_num or QUALITY_NUM
