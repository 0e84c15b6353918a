"""The two published layouts of DiT-XL/2: the authors' `DiT-XL-2-256x256.pt` and diffusers' `transformer/`.

What is special: diffusers stores the embedders of time and class once per block and splits the attention's weights, so
its layout is first brought back to the authors', and refused where the copies differ. Two tensors change form: the
authors' output orders a patch by (row, column, channel), ours by (channel, row, column) like the input; and the last
row of the class table is the null class.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from marcli.errors import MarcliError
from marcli.pretrained.safe import check_names_and_shapes, name_faults

NUM_FREQUENCIES = 256
MLP_RATIO = 4

# the authors' name -> ours, for what is only renamed
RENAMES = (
    (r"t_embedder\.mlp\.0\.", r"time_embed.fc1."),
    (r"t_embedder\.mlp\.2\.", r"time_embed.fc2."),
    (r"x_embedder\.proj\.", r"token_embed."),
    (r"blocks\.(\d+)\.adaLN_modulation\.1\.", r"blocks.\1.modulation."),
    (r"blocks\.", r"blocks."),
    (r"final_layer\.adaLN_modulation\.1\.", r"final_modulation."),
    (r"final_layer\.linear\.", r"out."),
)
FROM_DIFFUSERS = (
    (r"pos_embed\.proj\.", r"x_embedder.proj."),
    (r"transformer_blocks\.(\d+)\.norm1\.linear\.", r"blocks.\1.adaLN_modulation.1."),
    (r"transformer_blocks\.(\d+)\.attn1\.to_out\.0\.", r"blocks.\1.attn.proj."),
    (r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj\.", r"blocks.\1.mlp.fc1."),
    (r"transformer_blocks\.(\d+)\.ff\.net\.2\.", r"blocks.\1.mlp.fc2."),
    (r"proj_out_1\.", r"final_layer.adaLN_modulation.1."),
    (r"proj_out_2\.", r"final_layer.linear."),
)
EMBEDDERS = (
    (r"emb\.timestep_embedder\.linear_1\.", r"t_embedder.mlp.0."),
    (r"emb\.timestep_embedder\.linear_2\.", r"t_embedder.mlp.2."),
    (r"emb\.class_embedder\.", r"y_embedder."),
)


@dataclass(frozen=True)
class Architecture:
    """What a DiT is made of; `places` is the number of patches."""

    width: int = 1152
    depth: int = 28
    channels: int = 4
    patch: int = 2
    num_classes: int = 1000
    places: int = 256


RECIPES = {"dit_xl_2": Architecture()}


def layout(of: Architecture) -> dict[str, tuple[int, ...]]:
    """Return every tensor of the authors' model, name to shape; `pos_embed` is fixed and may be left out."""
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
    """Return a published DiT in our names as `ema.<name>` (published is the average), its recipe and no overrides.

    Raises MarcliError naming each missing, extra or misshapen tensor, in the authors' names.
    """
    if any(name.startswith("transformer_blocks.") for name in tensors):
        tensors = from_diffusers(tensors, source=source)
    recipe = min(RECIPES, key=lambda name: len(name_faults(layout(RECIPES[name]), tensors)))
    architecture = RECIPES[recipe]
    expected = layout(architecture)
    if "pos_embed" not in tensors:
        expected.pop("pos_embed")
    check_names_and_shapes(expected, tensors, source=source)
    return {f"ema.{name}": value for name, value in in_our_names(tensors, architecture).items()}, recipe, ()


def in_our_names(tensors: Mapping[str, Tensor], of: Architecture) -> dict[str, Tensor]:
    """Return the authors' tensors in our names and forms; positions are fixed, so they are left out."""
    ours = {}
    for name, value in tensors.items():
        if name in ("pos_embed", "y_embedder.embedding_table.weight"):
            continue
        if name == "x_embedder.proj.weight":
            value = value.flatten(1)
        if name.startswith("final_layer.linear."):
            by_place = value.unflatten(0, (of.patch, of.patch, 2 * of.channels))
            value = by_place.permute(2, 0, 1, *range(3, by_place.dim())).flatten(0, 2)
        ours[renamed(name, RENAMES)] = value.contiguous().clone()
    table = tensors["y_embedder.embedding_table.weight"]
    ours["class_embed.weight"], ours["null_class"] = table[:-1].clone(), table[-1:].clone()
    return ours


def from_diffusers(tensors: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Return diffusers' tensors in the authors' layout; raises MarcliError where a block's embedders differ."""
    theirs: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for name, value in tensors.items():
        if match := re.match(r"(transformer_blocks\.\d+\.norm1\.)(emb\..*)", name):
            target = renamed(match[2], EMBEDDERS)
            if target in theirs and not torch.equal(theirs[target], value):
                raise MarcliError(f"{source}: {name} differs from the first block's, but DiT has one embedder for all.")
            theirs[target] = value
        elif match := re.match(r"transformer_blocks\.(\d+)\.attn1\.to_([qkv])\.(weight|bias)", name):
            parts.setdefault(f"blocks.{match[1]}.attn.qkv.{match[3]}", {})[match[2]] = value
        else:
            theirs[renamed(name, FROM_DIFFUSERS)] = value
    for target, part in parts.items():
        if missing := [letter for letter in "qkv" if letter not in part]:
            raise MarcliError(f"The tensors of {source} do not fit the model; {target} lacks its to_{missing[0]}.")
        theirs[target] = torch.cat([part[letter] for letter in "qkv"])
    return theirs


def renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    """Return `name` under the first rule of `table` that fits; unchanged where none does."""
    for pattern, target in table:
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", target, name)
    return name
