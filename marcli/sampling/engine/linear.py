"""Linear layers through oneDNN, their weights laid out for the matrix units once, before generation starts.

A library call on plain weights re-orders them every time (bf16) or reads them badly (fp32 at a few rows), which at the
head's 2 to 64 rows costs more than the product itself. Where there is AVX-512 oneDNN's products in fp32 are the faster
ones at any number of rows, on plain weights as well, and bias and activation come with them.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from marcli.runtime.accelerator import cpu_has_bf16


@torch.library.custom_op("marcli::gelu", mutates_args=())
def opaque_gelu(x: Tensor) -> Tensor:
    """The GELU as something that torch.compile calls and does not write anew."""
    return F.gelu(x)


@opaque_gelu.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def gelu(x: Tensor) -> Tensor:
    """The exact GELU. PyTorch's own kernel takes two thirds of the time of one compiled for tensors of any size."""
    return opaque_gelu(x) if torch.compiler.is_compiling() and x.is_cuda else F.gelu(x)


Activation = Literal["none", "gelu", "swish"]
ACTIVATIONS = {"none": lambda x: x, "gelu": gelu, "swish": F.silu}
EXACT_GELU = "none"  # oneDNN's name for the GELU without tanh
HAS_AVX512 = torch.cpu.get_capabilities().get("avx512_f", False)
# A product of oneDNN starts 20 us later, which a small weight in fp32 does not make up for. Without AVX-512 packed
# weights gain nothing at many rows, and activations are slow in fp32 (measured with AVX2, up to 128 rows).
SMALLEST_FP32 = 512 * 512
MOST_ROWS_WITHOUT_AVX512 = 128


class PackedLinear(nn.Module):
    """activation(x W^T + b), with W packed where this device and dtype have a layout for it and it pays."""

    def __init__(
        self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"], *, activation: Activation, pack: bool
    ) -> None:
        """`pack` asks for a packed copy; fp32 keeps `weight` beside it for many rows, bf16 does not."""
        super().__init__()
        self.activation = activation
        is_fp32 = weight.dtype == torch.float32
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach()) if pack and onednn_pays(weight) else None
        self.weight = weight.detach() if is_fp32 or self.packed is None else None
        self.bias = bias.detach()
        self.fused = onednn_pays(weight) and HAS_AVX512 if is_fp32 else self.packed is not None

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        activation, weight = ACTIVATIONS[self.activation], self.weight if self.packed is None else self.packed
        if self.fused:
            algorithm = EXACT_GELU if self.activation == "gelu" else ""
            return torch.ops.mkldnn._linear_pointwise(x, weight, self.bias, self.activation, [], algorithm)
        if self.packed is None or x.shape[:-1].numel() > MOST_ROWS_WITHOUT_AVX512:
            return activation(F.linear(x, self.weight, self.bias))
        return activation(torch.ops.mkldnn._linear_pointwise(x, weight, self.bias, "none", [], ""))


def packed(linear: nn.Linear, *, activation: Activation = "none", pack: bool) -> PackedLinear:
    """A packed twin of a linear layer."""
    return PackedLinear(linear.weight, linear.bias, activation=activation, pack=pack)


def onednn_pays(weight: Tensor) -> bool:
    """Whether oneDNN has a product for this weight that pays: on a CPU, in fp32 if the weight is large, in bf16 if the
    CPU multiplies it."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if weight.dtype == torch.float32:
        return weight.numel() >= SMALLEST_FP32
    return weight.dtype == torch.bfloat16 and cpu_has_bf16()
