"""One colour of the checkerboard first, then the other in few AR steps, as its neighbours are known (after GtR,
2510.17171).
"""

from jaxtyping import Int
from torch import Tensor

from marcli.model.order import reveal_counts
from marcli.sampling.schedule import RevealStep, guidance_scale


def checkerboard_schedule(*, num_tokens: int, num_steps: int, cfg: float, cfg_schedule: str) -> list[RevealStep]:
    """Four fifths of the steps for the first colour, by the cosine rule; the rest share the second colour evenly.

    Raises ValueError for fewer than 2 steps.
    """
    second_steps = max(1, num_steps // 5)
    first, second = (num_tokens + 1) // 2, num_tokens // 2
    counts = reveal_counts(first, min(first, num_steps - second_steps))
    second_steps = min(second, num_steps - len(counts))
    counts += [second * (i + 1) // second_steps - second * i // second_steps for i in range(second_steps)]
    steps, known = [], 0
    for index, count in enumerate(counts):
        guidance = guidance_scale(cfg, cfg_schedule, num_tokens, max(1, num_tokens - known - count))
        steps.append(RevealStep(index, known, count, guidance))
        known += count
    return steps


def checkerboard_order(order: Int[Tensor, "batch tokens"]) -> Int[Tensor, "batch tokens"]:
    """The same order, one colour of the board first."""
    side = round(order.shape[1] ** 0.5)
    colour = (order // side + order % side) % 2
    return order.gather(1, colour.argsort(dim=1, stable=True))
