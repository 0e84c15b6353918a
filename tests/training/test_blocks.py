"""Which parts of a model count as its blocks."""

from functools import partial

import pytest
from torch.utils.checkpoint import checkpoint

from marcli.training.blocks import blocks
from tests.model import tiny


def test_a_block_is_met_once_and_not_in_pieces():
    of = tiny.recipe("masked", "random", "diffusion")
    model = tiny.model(of)
    expected = [*model.backbone.encoder, *model.backbone.decoder, *model.head.denoiser.blocks]
    assert [id(block) for block in blocks(model)] == [id(block) for block in expected]
    dit = tiny.model(tiny.recipe("dit", None, None))  # whose blocks hold lists of layers of their own
    assert [id(block) for block in blocks(dit)] == [id(block) for block in dit.transformer.transformer_blocks]


@pytest.mark.parametrize("recomputed", [False, True])
def test_blocks_are_recomputed_where_the_recipe_says_so(recipe, start, recomputed, tmp_path):
    model = start(recipe(activation_checkpointing=recomputed), tmp_path).model
    forwards = [block.forward for block in blocks(model)]
    assert len(forwards) == 3
    assert [isinstance(each, partial) and each.func is checkpoint for each in forwards] == [recomputed] * 3
