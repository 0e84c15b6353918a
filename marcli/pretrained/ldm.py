"""Autoencoder files in the layout of latent diffusion and taming-transformers, into diffusers' networks.

MAR's KL-16, LDM's kl-f16, kl-f8 and vq-f16, and taming's VQGANs share one layout. What differs between it and
diffusers: names, the order of the decoder's levels (counted from the image there, from the latents here), and 1x1
convolutions in attention where diffusers has linear layers. Every tensor of the network must be in the file, and no
other; the training losses (`loss.*`) are left out.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from marcli.errors import MarcliError
from marcli.pretrained.safe import check_names_and_shapes, read_safetensors_file, read_torch_file

CONTAINERS = ("model", "state_dict")  # MAR's key, and LDM's and taming's
NOT_OF_THE_NETWORK = ("loss.", "model_ema.")
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
RENAMED = (
    (r"\.resnets\.", ".block."),
    (r"\.attentions\.", ".attn."),
    (r"\.(down|up)samplers\.0\.", r".\1sample."),
    (r"\.mid_block\.block\.0\.", ".mid.block_1."),
    (r"\.mid_block\.block\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attn\.0\.", ".mid.attn_1."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
)


def read_ldm_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors of an autoencoder file by their published names; raises MarcliError."""
    if path.suffix == ".safetensors":
        tensors = read_safetensors_file(path)[0]
    else:
        content = read_torch_file(path)
        inside = [content[key] for key in CONTAINERS if isinstance(content.get(key), dict)]
        tensors = inside[0] if inside else content
    tensors = {name: value for name, value in tensors.items() if not name.startswith(NOT_OF_THE_NETWORK)}
    if not any(name.startswith("encoder.") for name in tensors):
        raise MarcliError(f"{path} holds no autoencoder: none of its {len(tensors)} tensors is named encoder.*.")
    return tensors


def has_decoder_attention(tensors: Mapping[str, Tensor], *, levels: int) -> bool:
    """Whether the decoder attends at the latents' resolution: LDM's do, MAR's KL-16 does not."""
    return any(name.startswith(f"decoder.up.{levels - 1}.attn.") for name in tensors)


def assign_ldm(network: nn.Module, tensors: Mapping[str, Tensor], *, levels: int, source: str) -> None:
    """Give a diffusers autoencoder of `levels` resolutions (it may be on meta) the tensors of a published file.

    Raises MarcliError that names every missing, extra or misshapen tensor by its published name.
    """
    own = network.state_dict()
    names = {name: published_name(name, levels=levels) for name in own}
    expected = {names[name]: _published_shape(names[name], tuple(value.shape)) for name, value in own.items()}
    check_names_and_shapes(expected, tensors, source=source)
    values = {name: tensors[names[name]].reshape(value.shape).to(value.dtype) for name, value in own.items()}
    network.load_state_dict(values, strict=True, assign=True)


def published_name(name: str, *, levels: int) -> str:
    """Return what the published layout calls parameter `name` of a diffusers autoencoder."""
    name = name.replace(".down_blocks.", ".down.")
    name = re.sub(r"\.up_blocks\.(\d+)\.", lambda match: f".up.{levels - 1 - int(match[1])}.", name)
    for ours, theirs in RENAMED:
        name = re.sub(ours, theirs, name)
    if ".attn" in name:
        for ours, theirs in ATTENTION.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
    return name


def _published_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape, 1, 1) if ".attn" in name and len(shape) == 2 else shape
