"""Which tokens are known, and how many are revealed at each step.

An order lists positions in the sequence in which they are revealed: the first `known` entries are known, the rest
hidden. Counts are plain integers, so every shape is known before a loop starts.
"""

import math

import torch
from jaxtyping import Int
from torch import Generator, Tensor


def draw_order(name: str, generator: Generator, num_tokens: int) -> Int[Tensor, " tokens"]:
    """The order called `name`, a value of the recipe's `model.order`; raises ValueError for any other.

    "confidence" decides while codes are generated which are revealed; the order drawn here is only where they stand.
    """
    match name:
        case "random" | "confidence":
            return random_order(generator, num_tokens)
        case "raster":
            return raster_order(num_tokens)
    raise ValueError(f"there is no order {name!r}")


def random_order(generator: Generator, num_tokens: int) -> Int[Tensor, " tokens"]:
    """A uniformly random order of all positions."""
    return torch.randperm(num_tokens, generator=generator)


def raster_order(num_tokens: int) -> Int[Tensor, " tokens"]:
    """Row by row from the top left."""
    return torch.arange(num_tokens)


def draw_mask_ratio(generator: Generator, smallest: float, std: float) -> float:
    """Share of hidden tokens in training: normal around 1, truncated to [smallest, 1] (section 4.2)."""
    lowest = normal_cdf((smallest - 1.0) / std)
    uniform = torch.rand((), generator=generator, dtype=torch.float64)
    quantile = torch.special.ndtri(lowest + uniform * (0.5 - lowest))
    return min(1.0, max(smallest, 1.0 + std * quantile.item()))


def normal_cdf(x: float) -> float:
    """Cumulative distribution function of the standard normal."""
    return 0.5 * (1.0 + math.erf(x / math.sqrt(2.0)))


def reveal_counts(num_tokens: int, num_steps: int) -> list[int]:
    """Tokens revealed at each step under the cosine schedule of MaskGIT; at least one per step.

    After step s of S, floor(n cos(pi/2 (s+1)/S)) tokens stay hidden, at least 1 and at least one
    fewer than before; the last step reveals the rest. Raises ValueError for more steps than tokens.
    """
    if not 1 <= num_steps <= num_tokens:
        raise ValueError(f"{num_steps} steps cannot reveal {num_tokens} tokens: choose 1 to {num_tokens}")
    counts, hidden = [], num_tokens
    for step in range(num_steps - 1):
        still_hidden = hidden_after(step, num_tokens, num_steps, hidden)
        counts.append(hidden - still_hidden)
        hidden = still_hidden
    return [*counts, hidden]


def hidden_after(step: int, num_tokens: int, num_steps: int, hidden: int) -> int:
    """Tokens that the cosine rule leaves hidden after `step`, `hidden` before it: at least 1, even at the last step."""
    cosine = math.floor(num_tokens * math.cos(math.pi / 2 * (step + 1) / num_steps))
    return max(1, min(hidden - 1, cosine))
