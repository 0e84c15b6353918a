"""Latents to tokens and back, against slices taken by hand."""

import torch

from marcli.model.grid import to_latents, to_tokens


def test_a_token_is_a_square_of_all_channels_and_tokens_stand_in_raster_order():
    latents = torch.randn(2, 3, 8, 8)
    tokens = to_tokens(latents, 2)
    assert tokens.shape == (2, 16, 12)
    for row in range(4):
        for column in range(4):
            square = latents[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(tokens[:, 4 * row + column], square.flatten(1))
    assert torch.equal(to_latents(tokens, 2), latents)
