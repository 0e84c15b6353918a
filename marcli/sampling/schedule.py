"""What happens at each AR step, decided before the first one: which tokens, under how much guidance."""

from dataclasses import dataclass
from typing import Literal

from marcli.model.order import hidden_after, reveal_counts


@dataclass(frozen=True)
class RevealStep:
    """Reveal `count` tokens when `known` are known, with this guidance scale."""

    index: int
    known: int
    count: int
    guidance: float


def reveal_schedule(
    *, num_tokens: int, num_steps: int, cfg: float, cfg_schedule: Literal["linear", "constant"]
) -> list[RevealStep]:
    """The cosine schedule of section 4.2 with the guidance of each step."""
    steps, known = [], 0
    for index, count in enumerate(reveal_counts(num_tokens, num_steps)):
        hidden = hidden_after(index, num_tokens, num_steps, num_tokens - known)
        steps.append(RevealStep(index, known, count, guidance_scale(cfg, cfg_schedule, num_tokens, hidden)))
        known += count
    return steps


def guidance_scale(cfg: float, schedule: str, num_tokens: int, hidden: int) -> float:
    """Guidance with `hidden` tokens left: constant, or growing linearly with the revealed share (Muse, section 2.7).

    The published schedule never counts fewer than one hidden token, so it ends at (n - 1) / n of the way.
    """
    if schedule == "constant":
        return cfg
    return 1.0 + (cfg - 1.0) * (num_tokens - hidden) / num_tokens
