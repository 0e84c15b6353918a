"""The authors' layout, written down once: names and shapes of the published models, and what deviates from them."""

import hashlib
import json
from argparse import Namespace

import pytest
import torch

from marcli.errors import MarcliError
from marcli.model.build import build_model
from marcli.pretrained.official_mar import SHIPPED, MarArchitecture, layout, our_name, recipe_of, recognise, weights_of
from marcli.recipe.reader import read_recipe, shipped_recipe
from marcli.runtime.skeleton import skeletons

# sha256 of {name: shape} of the published models as sorted JSON, and their number of parameters
PUBLISHED = {
    "mar_b": ("b5d0682a97934af5c750cd9b031c1d71cbcb76fafe60ee1e842a0e8abb6e9808", 207_924_768),
    "mar_l": ("cb26fa364ae56867edd36c757968abeb3e294968ec1f9adc6a6d07b0d31dd80f", 478_326_304),
    "mar_h": ("aa845a637ee76e4e4013ed6f8cb4346ea3eca550354d63f589c7bf80a119c4e2", 942_403_104),
}


def on_meta(architecture: MarArchitecture) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in layout(architecture).items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_are_the_published_ones(name: str) -> None:
    shapes = {key: list(shape) for key, shape in layout(SHIPPED[name]).items()}
    digest = hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest()
    parameters = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert (digest, parameters) == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_our_model_of_the_shipped_recipe_has_the_same_tensors(name: str) -> None:
    with skeletons():
        model = build_model(read_recipe(shipped_recipe(name), []))
    theirs = {our_name(key): shape for key, shape in layout(SHIPPED[name]).items()}
    assert theirs == {key: tuple(value.shape) for key, value in model.state_dict().items()}


def test_names_map_one_to_one() -> None:
    names = list(layout(SHIPPED["mar_h"]))
    assert len({our_name(name) for name in names}) == len(names)
    with pytest.raises(MarcliError, match=r"gate\.weight"):
        our_name("gate.weight")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_complete_file_is_recognised(name: str) -> None:
    assert recognise(on_meta(SHIPPED[name]), source="file") == SHIPPED[name]
    assert recipe_of(SHIPPED[name], None) == (name, ())


FAULTS = (
    ("mask_token", None, "1 missing: mask_token [1, 1, {width}]"),
    ("diffloss.net.input_proj.weight", None, "1 missing: diffloss.net.input_proj.weight [{head}, 16]"),
    ("encoder_blocks.3.attn.qkv.bias", (7,), "encoder_blocks.3.attn.qkv.bias [7] where the model has [{qkv}]"),
    ("z_proj.weight", (9, 16), "1 of another shape: z_proj.weight [9, 16] where the model has [{width}, 16]"),
    ("decoder_blocks.40.norm1.weight", (4,), "1 not of this model: decoder_blocks.40.norm1.weight [4]"),
    ("gate", (2, 2), "1 not of this model: gate [2, 2]"),
)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize(("tensor", "shape", "message"), FAULTS)
def test_a_missing_extra_or_misshapen_tensor_is_named(name: str, tensor: str, shape, message: str) -> None:
    architecture = SHIPPED[name]
    tensors = on_meta(architecture)
    if shape is None:
        del tensors[tensor]
    else:
        tensors[tensor] = torch.empty(shape, device="meta")
    with pytest.raises(MarcliError) as error:
        recognise(tensors, source="checkpoint-last.pth (model_ema)")
    width = architecture.width
    assert message.format(width=width, head=architecture.head_width, qkv=3 * width) in str(error.value)
    assert "checkpoint-last.pth (model_ema)" in str(error.value)
    assert str(error.value).count("[") <= 4  # nothing else is blamed


def test_a_block_that_is_left_out_is_named_in_full() -> None:
    tensors = {key: value for key, value in on_meta(SHIPPED["mar_b"]).items() if "encoder_blocks.5." not in key}
    with pytest.raises(MarcliError, match=r"12 missing: encoder_blocks\.5\.norm1\.weight.*encoder_blocks\.5\.mlp\.fc2"):
        recognise(tensors, source="file")


def test_another_architecture_becomes_overrides_of_the_shipped_recipe() -> None:
    trained = MarArchitecture(
        width=1024, encoder_depth=16, decoder_depth=16, head_width=1024, head_depth=3, num_classes=100, num_tokens=1024
    )
    assert recognise(on_meta(trained), source="file") == trained
    name, overrides = recipe_of(trained, Namespace(vae_stride=8, patch_size=2))
    recipe = read_recipe(shipped_recipe(name), overrides)
    assert (recipe.name, recipe.tokenizer.kind, recipe.model.patch_size) == ("mar_l", "kl8", 2)
    assert (recipe.data.num_classes, recipe.num_tokens, recipe.data.image_size) == (100, 1024, 512)
    with skeletons():
        model = build_model(recipe)
    assert {our_name(key): shape for key, shape in layout(trained).items()} == {
        key: tuple(value.shape) for key, value in model.state_dict().items()
    }


def test_an_unknown_width_is_refused_since_the_heads_are_not_in_the_file() -> None:
    with pytest.raises(MarcliError, match="width of 512"):
        recipe_of(MarArchitecture(width=512, encoder_depth=1, decoder_depth=1, head_width=64, head_depth=1), None)


def test_a_file_with_and_without_average_and_a_converted_one() -> None:
    raw, averaged = {"mask_token": 1}, {"mask_token": 2}
    assert weights_of({"model": raw, "model_ema": averaged, "epoch": 3}) == {"raw": raw, "ema": averaged}
    assert weights_of({"model": raw, "epoch": 3}) == {"raw": raw}
    assert weights_of(raw) == {"raw": raw}
