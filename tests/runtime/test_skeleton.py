"""A skeleton has the names and shapes of the real thing, and torch's machinery for drawing is never imported."""

import subprocess
import sys

import torch
from torch import nn

from marcli.runtime.skeleton import skeletons


class Drawn(nn.Module):
    """Everything that modules of this package and of diffusers initialise with."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.conv = nn.Conv2d(3, 4, 2)
        self.embedding = nn.Embedding(5, 6)
        self.norm = nn.LayerNorm(6)
        self.token = nn.Parameter(torch.empty(1, 2))
        nn.init.normal_(self.token, std=0.02)
        nn.init.trunc_normal_(self.linear.bias)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.conv.bias)


def test_names_and_shapes_without_values() -> None:
    with skeletons():
        skeleton = Drawn()
    real = Drawn()
    assert {name: value.shape for name, value in skeleton.state_dict().items()} == {
        name: value.shape for name, value in real.state_dict().items()
    }
    assert all(value.is_meta for value in skeleton.state_dict().values())
    assert not any(value.is_meta for value in real.state_dict().values())


def test_making_one_is_cheap() -> None:
    program = (
        "import sys, tests.runtime.test_skeleton as t\n"
        "with t.skeletons(): t.Drawn()\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
