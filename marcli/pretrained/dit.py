"""The two published layouts of DiT-XL/2: the authors' `DiT-XL-2-256x256.pt` and diffusers' `transformer/`.

Our names are diffusers' with one difference: diffusers stores the embedders of time and class once per block; we keep
the first block's, having checked that the others are equal. Both layouts come from one table, so a fault is reported in
the names of the file at hand, and the authors' joint q, k, v are split as diffusers has them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from marcli.errors import MarcliError
from marcli.pretrained.safe import check_names_and_shapes

NUM_FREQUENCIES = 256
MLP_RATIO = 4
RECIPE = "dit_xl_2"
OURS = "transformer."
POSITIONS = ("pos_embed", "pos_embed.pos_embed")  # fixed sines, which a file may hold or leave out
COPY = re.compile(r"transformer_blocks\.\d+\.(norm1\.emb\..*)")

# the authors' name -> diffusers', for everything but q, k and v
RENAMES = (
    (r"x_embedder\.", r"pos_embed."),
    (r"t_embedder\.mlp\.0\.", r"transformer_blocks.0.norm1.emb.timestep_embedder.linear_1."),
    (r"t_embedder\.mlp\.2\.", r"transformer_blocks.0.norm1.emb.timestep_embedder.linear_2."),
    (r"y_embedder\.", r"transformer_blocks.0.norm1.emb.class_embedder."),
    (r"blocks\.(\d+)\.adaLN_modulation\.1\.", r"transformer_blocks.\1.norm1.linear."),
    (r"blocks\.(\d+)\.attn\.proj\.", r"transformer_blocks.\1.attn1.to_out.0."),
    (r"blocks\.(\d+)\.mlp\.fc1\.", r"transformer_blocks.\1.ff.net.0.proj."),
    (r"blocks\.(\d+)\.mlp\.fc2\.", r"transformer_blocks.\1.ff.net.2."),
    (r"final_layer\.adaLN_modulation\.1\.", r"proj_out_1."),
    (r"final_layer\.linear\.", r"proj_out_2."),
)
QKV = re.compile(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)")


@dataclass(frozen=True)
class DitArchitecture:
    """What a DiT is made of; the defaults are DiT-XL/2. `places` is the number of patches."""

    width: int = 1152
    depth: int = 28
    channels: int = 4
    patch: int = 2
    num_classes: int = 1000
    places: int = 256


PUBLISHED = {DitArchitecture(): (), DitArchitecture(places=1024): ("data.image_size=512",)}


def layout(of: DitArchitecture) -> dict[str, tuple[int, ...]]:
    """Return every tensor of the authors' model, name to shape."""
    width, patch_values = of.width, of.channels * of.patch**2
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, of.places, width),
        "x_embedder.proj.weight": (width, of.channels, of.patch, of.patch),
        "x_embedder.proj.bias": (width,),
        "y_embedder.embedding_table.weight": (of.num_classes + 1, width),
    }
    linears = {"t_embedder.mlp.0": (width, NUM_FREQUENCIES), "t_embedder.mlp.2": (width, width)}
    for block in (f"blocks.{index}" for index in range(of.depth)):
        linears[f"{block}.attn.qkv"] = (3 * width, width)
        linears[f"{block}.attn.proj"] = (width, width)
        linears[f"{block}.mlp.fc1"] = (MLP_RATIO * width, width)
        linears[f"{block}.mlp.fc2"] = (width, MLP_RATIO * width)
        linears[f"{block}.adaLN_modulation.1"] = (6 * width, width)
    linears["final_layer.linear"] = (2 * patch_values, width)
    linears["final_layer.adaLN_modulation.1"] = (2 * width, width)
    for name, shape in linears.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    return shapes


def is_published_dit(tensors: Mapping[str, Any]) -> bool:
    """Return whether these are tensors of a DiT in one of the two layouts."""
    return any(name.startswith(("x_embedder.proj.", "transformer_blocks.")) for name in tensors)


def convert(tensors: Mapping[str, Any], *, source: str) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """Return one set of weights of a DiT in our names, its recipe and overrides.

    Raises MarcliError naming each missing, extra or misshapen tensor in the file's own names.
    """
    by_authors = any(name.startswith("x_embedder.") for name in tensors)
    places = next((tensors[name].shape[1] for name in POSITIONS if isinstance(tensors.get(name), Tensor)), None)
    architecture = next((each for each in PUBLISHED if each.places == places), DitArchitecture())
    tensors = {name: value for name, value in tensors.items() if name not in POSITIONS}
    expected = {name: shape for name, shape in layout(architecture).items() if name not in POSITIONS}
    if not by_authors:
        tensors = without_copies(tensors, source=source)
        skeleton = in_diffusers_names({name: torch.empty(shape, device="meta") for name, shape in expected.items()})
        expected = {name: tuple(value.shape) for name, value in skeleton.items()}
    check_names_and_shapes(expected, tensors, source=source)
    converted = in_diffusers_names(tensors) if by_authors else tensors
    return {f"{OURS}{name}": value for name, value in converted.items()}, RECIPE, PUBLISHED[architecture]


def in_diffusers_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the authors' tensors by diffusers' names, with q, k and v apart."""
    named: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if match := QKV.fullmatch(name):
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                named[f"transformer_blocks.{match[1]}.attn1.to_{letter}.{match[2]}"] = part
        else:
            theirs, ours = next(rule for rule in RENAMES if re.match(rule[0], name))
            named[re.sub(f"^{theirs}", ours, name)] = value
    return named


def without_copies(tensors: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Return diffusers' tensors with the first block's embedders alone; raises MarcliError where another differs."""
    kept = {}
    for name, value in tensors.items():
        match = COPY.fullmatch(name)
        first = match and f"transformer_blocks.0.{match[1]}"
        if first is None or first == name or first not in tensors:
            kept[name] = value
        elif not torch.equal(tensors[first], value):
            raise MarcliError(f"{source}: {name} differs from {first}, but a DiT has one embedder for all blocks.")
    return kept
