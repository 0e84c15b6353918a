"""The layout of MAR's authors: `checkpoint-last.pth`, and files converted from it name by name.

Their file is a pickle `{"model", "model_ema", "optimizer", "epoch", "args": argparse.Namespace}`; a converted file has
the tensors of one of the two at its top. The layout is written down here as names and shapes of an architecture, so
that a fault is reported in the names of the file, before any model is built.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from marcli.errors import MarcliError
from marcli.pretrained.safe import check_names_and_shapes, name_faults

MLP_RATIO = 4
NUM_FREQUENCIES = 256
HEADS = {768: 12, 1024: 16, 1280: 16}
STRIDES = {16: "kl16", 8: "kl8"}
SAMPLE_STEPS = 64
UNGUIDED = ("sample.temperature=0.95",)

# their name -> ours; block numbers stay where the pattern has them
RENAMES = (
    (r"fake_latent", r"null_class"),
    (r"class_emb\.", r"class_embed."),
    (r"mask_token", r"backbone.mask_token"),
    (r"(encoder|decoder)_pos_embed_learned", r"backbone.\1_position"),
    (r"diffusion_pos_embed_learned", r"backbone.z_position"),
    (r"z_proj\.", r"backbone.token_embed."),
    (r"z_proj_ln\.", r"backbone.embed_norm."),
    (r"(encoder|decoder)_blocks\.", r"backbone.\1."),
    (r"(encoder|decoder)_norm\.", r"backbone.\1_norm."),
    (r"decoder_embed\.", r"backbone.decoder_embed."),
    (r"diffloss\.net\.time_embed\.mlp\.0\.", r"head.denoiser.time_embed.fc1."),
    (r"diffloss\.net\.time_embed\.mlp\.2\.", r"head.denoiser.time_embed.fc2."),
    (r"diffloss\.net\.cond_embed\.", r"head.denoiser.z_embed."),
    (r"diffloss\.net\.input_proj\.", r"head.denoiser.token_embed."),
    (r"diffloss\.net\.res_blocks\.(\d+)\.in_ln\.", r"head.denoiser.blocks.\1.norm."),
    (r"diffloss\.net\.res_blocks\.(\d+)\.mlp\.0\.", r"head.denoiser.blocks.\1.fc1."),
    (r"diffloss\.net\.res_blocks\.(\d+)\.mlp\.2\.", r"head.denoiser.blocks.\1.fc2."),
    (r"diffloss\.net\.res_blocks\.(\d+)\.adaLN_modulation\.1\.", r"head.denoiser.blocks.\1.modulation."),
    (r"diffloss\.net\.final_layer\.linear\.", r"head.denoiser.out."),
    (r"diffloss\.net\.final_layer\.adaLN_modulation\.1\.", r"head.denoiser.final_modulation."),
)


@dataclass(frozen=True)
class MarArchitecture:
    """What the names and shapes of a file say about its model."""

    width: int
    encoder_depth: int
    decoder_depth: int
    head_width: int
    head_depth: int
    num_classes: int = 1000
    token_dim: int = 16
    num_tokens: int = 256
    buffer_size: int = 64


SHIPPED = {
    "mar_b": MarArchitecture(width=768, encoder_depth=12, decoder_depth=12, head_width=1024, head_depth=6),
    "mar_l": MarArchitecture(width=1024, encoder_depth=16, decoder_depth=16, head_width=1280, head_depth=8),
    "mar_h": MarArchitecture(width=1280, encoder_depth=20, decoder_depth=20, head_width=1536, head_depth=12),
}


def layout(of: MarArchitecture) -> dict[str, tuple[int, ...]]:
    """Return every tensor of the authors' model, name to shape."""
    width, places = of.width, of.buffer_size + of.num_tokens
    shapes: dict[str, tuple[int, ...]] = {
        "fake_latent": (1, width),
        "encoder_pos_embed_learned": (1, places, width),
        "mask_token": (1, 1, width),
        "decoder_pos_embed_learned": (1, places, width),
        "diffusion_pos_embed_learned": (1, of.num_tokens, width),
        "class_emb.weight": (of.num_classes, width),
    }

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def norm(name: str, channels: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (channels,), (channels,)

    linear("z_proj", of.token_dim, width)
    norm("z_proj_ln", width)
    for part, depth in (("encoder", of.encoder_depth), ("decoder", of.decoder_depth)):
        if part == "decoder":
            linear("decoder_embed", width, width)
        for block in (f"{part}_blocks.{index}" for index in range(depth)):
            norm(f"{block}.norm1", width)
            linear(f"{block}.attn.qkv", width, 3 * width)
            linear(f"{block}.attn.proj", width, width)
            norm(f"{block}.norm2", width)
            linear(f"{block}.mlp.fc1", width, MLP_RATIO * width)
            linear(f"{block}.mlp.fc2", MLP_RATIO * width, width)
        norm(f"{part}_norm", width)
    head, net = of.head_width, "diffloss.net"
    linear(f"{net}.time_embed.mlp.0", NUM_FREQUENCIES, head)
    linear(f"{net}.time_embed.mlp.2", head, head)
    linear(f"{net}.cond_embed", width, head)
    linear(f"{net}.input_proj", of.token_dim, head)
    for block in (f"{net}.res_blocks.{index}" for index in range(of.head_depth)):
        norm(f"{block}.in_ln", head)
        linear(f"{block}.mlp.0", head, head)
        linear(f"{block}.mlp.2", head, head)
        linear(f"{block}.adaLN_modulation.1", head, 3 * head)
    linear(f"{net}.final_layer.linear", head, 2 * of.token_dim)
    linear(f"{net}.final_layer.adaLN_modulation.1", head, 2 * head)
    return shapes


def our_name(name: str) -> str:
    """Return our name of one of their tensors; raises MarcliError for a name their layout does not have."""
    for theirs, ours in RENAMES:
        if re.match(theirs, name):
            return re.sub(f"^{theirs}", ours, name)
    raise MarcliError(f"{name} is not a tensor of the authors' MAR.")


def is_official_mar(tensors: Mapping[str, Any]) -> bool:
    """Return whether these are tensors of the authors' model, complete or not."""
    return any(name.startswith(("diffloss.", "encoder_blocks.", "decoder_pos_embed_learned")) for name in tensors)


def recognise(tensors: Mapping[str, Any], *, source: str) -> MarArchitecture:
    """Return the architecture of a complete set of tensors.

    Raises MarcliError naming each missing, extra or misshapen tensor against the architecture that fits best.
    """
    candidates = list(SHIPPED.values())
    if (derived := derive(tensors)) is not None and derived not in candidates:
        candidates.append(derived)
    best = min(candidates, key=lambda each: len(name_faults(layout(each), tensors)))
    check_names_and_shapes(layout(best), tensors, source=source)
    return best


def derive(tensors: Mapping[str, Any]) -> MarArchitecture | None:
    """Return the architecture that a few tensors tell; None where one of them is not there."""

    def count(pattern: str) -> int:
        return len({match[1] for name in tensors if (match := re.match(pattern, name))})

    try:
        num_tokens = tensors["diffusion_pos_embed_learned"].shape[1]
        return MarArchitecture(
            width=tensors["z_proj.weight"].shape[0],
            encoder_depth=count(r"encoder_blocks\.(\d+)\."),
            decoder_depth=count(r"decoder_blocks\.(\d+)\."),
            head_width=tensors["diffloss.net.input_proj.weight"].shape[0],
            head_depth=count(r"diffloss\.net\.res_blocks\.(\d+)\."),
            num_classes=tensors["class_emb.weight"].shape[0],
            token_dim=tensors["z_proj.weight"].shape[1],
            num_tokens=num_tokens,
            buffer_size=tensors["encoder_pos_embed_learned"].shape[1] - num_tokens,
        )
    except (KeyError, IndexError, AttributeError):
        return None


def recipe_of(architecture: MarArchitecture, args: object) -> tuple[str, tuple[str, ...]]:
    """Return the shipped recipe of a file and the overrides that make it the file's own.

    `args` is the file's Namespace, which knows the tokenizer's stride and the patch; None where it has none.
    Raises MarcliError for a width whose number of attention heads is not published.
    """
    for name, shipped in SHIPPED.items():
        if architecture == shipped:
            return name, ()
    if architecture.width not in HEADS:
        raise MarcliError(
            f"A width of {architecture.width} is none of the published models' ({', '.join(map(str, HEADS))}), and the "
            "file does not say the number of attention heads."
        )
    name, shipped = next((name, each) for name, each in SHIPPED.items() if each.width == architecture.width)
    stride, patch = getattr(args, "vae_stride", 16), getattr(args, "patch_size", 1)
    if stride not in STRIDES:
        raise MarcliError(f"The file was trained over a tokenizer of stride {stride}; known are 16 (kl16) and 8 (kl8).")
    keys = {
        "encoder_depth": "model.backbone.encoder_depth",
        "decoder_depth": "model.backbone.decoder_depth",
        "buffer_size": "model.backbone.buffer_size",
        "head_width": "model.head.width",
        "head_depth": "model.head.depth",
        "num_classes": "data.num_classes",
    }
    theirs, ours = asdict(architecture), asdict(shipped)
    overrides = [f"{key}={theirs[field]}" for field, key in keys.items() if theirs[field] != ours[field]]
    overrides += [
        f"tokenizer.kind={STRIDES[stride]}",
        f"model.patch_size={patch}",
        f"data.image_size={math.isqrt(architecture.num_tokens) * patch * stride}",
        f"sample.steps={min(SAMPLE_STEPS, architecture.num_tokens)}",
    ]
    return name, tuple(overrides)


def weights_of(content: Mapping[str, Any]) -> dict[str, Mapping[str, Tensor]]:
    """Return the sets of weights in a file's content, as `raw` and, where the file has it, `ema`."""
    if "model" not in content:
        return {"raw": content}
    named = {"raw": content["model"], "ema": content.get(averaged_name(content))}
    return {name: tensors for name, tensors in named.items() if isinstance(tensors, Mapping)}


def averaged_name(content: Mapping[str, Any]) -> str:
    """What a training file calls its averaged weights: MAR's `model_ema`, DiT's `ema`."""
    return "model_ema" if "model_ema" in content else "ema"
