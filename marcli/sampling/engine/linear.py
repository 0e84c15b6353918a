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
# In fp32, where plain weights are no disaster: a packed product starts 20 us later, and gains nothing in cache or at
# full speed (measured with AVX2: widths of 512 and more, up to 128 rows).
SMALLEST_PACKED_FP32 = 512 * 512
MOST_ROWS_FP32 = 128


class PackedLinear(nn.Module):
    """activation(x W^T + b), with W packed where this device and dtype have a layout for it and it pays."""

    def __init__(
        self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"], *, activation: Activation, pack: bool
    ) -> None:
        """`pack` asks for a packed copy; fp32 keeps `weight` beside it for many rows, bf16 does not."""
        super().__init__()
        self.activation = activation
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach()) if pack and can_pack(weight) else None
        self.weight = None if self.packed is not None and weight.dtype == torch.bfloat16 else weight.detach()
        self.bias = bias.detach()

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        activation = ACTIVATIONS[self.activation]
        if self.weight is None:
            algorithm = EXACT_GELU if self.activation == "gelu" else ""
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, self.activation, [], algorithm)
        if self.packed is None or x.shape[:-1].numel() > MOST_ROWS_FP32:
            return activation(F.linear(x, self.weight, self.bias))
        # Outside of the product, for oneDNN's own activations are slow in fp32.
        return activation(torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], ""))


def packed(linear: nn.Linear, *, activation: Activation = "none", pack: bool) -> PackedLinear:
    """A packed twin of a linear layer."""
    return PackedLinear(linear.weight, linear.bias, activation=activation, pack=pack)


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN has its own layout for this weight, and it pays: on a CPU, in fp32 if the weight is large, in bf16
    if the CPU multiplies it."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if weight.dtype == torch.float32:
        return weight.numel() >= SMALLEST_PACKED_FP32
    return weight.dtype == torch.bfloat16 and cpu_has_bf16()
