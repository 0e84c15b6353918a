"""Linear layers whose weights are laid out for the matrix units once, before generation starts.

A library call on plain weights re-orders them every time (bf16) or reads them badly (fp32 at a few rows),
which at the head's 2 to 64 rows costs more than the product itself. oneDNN takes weights in its own layout.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from marcli.runtime.accelerator import cpu_has_bf16

Activation = Literal["none", "gelu", "swish"]
ACTIVATIONS = {"none": lambda x: x, "gelu": F.gelu, "swish": F.silu}
EXACT_GELU = "none"  # oneDNN's name for the GELU without tanh


class PackedLinear(nn.Module):
    """activation(x W^T + b), with W packed where this device and dtype have a layout for it."""

    def __init__(
        self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"], *, activation: Activation, pack: bool
    ) -> None:
        """`pack` asks for a packed copy; without it, or where there is no such layout, `weight` itself is used."""
        super().__init__()
        self.activation = activation
        self.packed = pack and can_pack(weight)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach()) if self.packed else weight.detach()
        self.bias = bias.detach()

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        if not self.packed:
            return ACTIVATIONS[self.activation](F.linear(x, self.weight, self.bias))
        algorithm = EXACT_GELU if self.activation == "gelu" else ""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.activation, [], algorithm)


def packed(linear: nn.Linear, *, activation: Activation = "none", pack: bool) -> PackedLinear:
    """A packed twin of a linear layer."""
    return PackedLinear(linear.weight, linear.bias, activation=activation, pack=pack)


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN has its own layout for this weight: on a CPU, in fp32 or in bf16 if the CPU multiplies it."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and cpu_has_bf16())
