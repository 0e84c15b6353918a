"""The transformer block against timm's, of which the published model is made."""

from functools import partial

import pytest
import torch
from timm.models.vision_transformer import Block as TimmBlock
from torch import nn

from marcli.model.layers.block import NORM_EPS, Block


@pytest.mark.parametrize("training", [False, True])
def test_a_block_is_that_of_timm_with_every_dropout_in_its_place(training):
    """Both draw the same masks from the same seed only if they drop in the same places in the same order."""
    torch.manual_seed(0)
    ours = Block(width=12, heads=3, mlp_ratio=4.0, dropout=0.3).train(training)
    norm = partial(nn.LayerNorm, eps=NORM_EPS)
    theirs = TimmBlock(12, 3, mlp_ratio=4.0, qkv_bias=True, proj_drop=0.3, attn_drop=0.3, norm_layer=norm)
    theirs.load_state_dict(ours.state_dict())
    theirs.train(training)
    x = torch.randn(2, 7, 12)
    outputs = []
    for block in (ours, theirs):
        torch.manual_seed(1)
        outputs.append(block(x))
    assert (outputs[0] - outputs[1]).abs().max() <= 1e-6
    moved = (outputs[0] - ours.eval()(x)).abs().max() > 0.01
    assert moved == training
