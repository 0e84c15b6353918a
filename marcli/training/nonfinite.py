"""A loss or gradient that is not finite: the update is withheld on the device, the host hears of it when it next looks.

The loss is the mean over all processes and the gradient has been summed over them, so every process sees the same
flag at the same step. Once the policy is exhausted the flag stays up: no later step changes a weight.
"""

import torch
from torch import Tensor

LONGEST_STREAK = {"stop": 1, "skip": 10}


class NonFiniteGuard:
    """Decides which updates are withheld under a policy of `recipe.train.nan_policy`.

    `streak` counts the steps withheld in a row before the first one here; a policy that has become stricter forgives.
    """

    def __init__(self, policy: str, device: torch.device, *, streak: int):
        self.limit = LONGEST_STREAK[policy]
        self.streak = torch.tensor(float(min(streak, self.limit - 1)), device=device)

    def withhold(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Return 1.0 on the device when this step must change nothing, else 0.0."""
        bad = ~(torch.isfinite(loss) & torch.isfinite(norm))
        stuck = self.streak >= self.limit
        self.streak = torch.where(bad | stuck, self.streak + 1, torch.zeros_like(self.streak))
        return (bad | stuck).float()

    def exhausted(self, streak: int) -> bool:
        """Return whether `streak` withheld steps in a row end the run."""
        return streak >= self.limit
