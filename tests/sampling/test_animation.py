"""Frames of the animation: what is known, and grey where nothing is."""

import numpy as np
import torch

from marcli.sampling.animation import GREY, Animation
from marcli.sampling.schedule import RevealStep
from tests.model.tiny import recipe, system

ORDER = [5, 0, 15, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14]


def test_a_frame_is_grey_where_tokens_are_hidden(tmp_path):
    of = recipe("masked", "random", "diffusion")
    animation = Animation(system(of), tmp_path / "animation.gif")
    for index, num_known in enumerate((1, 3, 16)):
        white = torch.full((1, num_known, of.token_dim), 10.0)
        animation.watch(RevealStep(index, known=num_known - 1, count=1, guidance=1.0), white, torch.tensor([ORDER]))
    for frame, known in zip(animation.frames, (ORDER[:1], ORDER[:3], ORDER), strict=True):
        pixels = np.asarray(frame)[8:-8, 8:-8]  # without the gap around
        tokens = pixels.reshape(4, 16, 4, 16).transpose(0, 2, 1, 3).reshape(16, -1)
        expected = [255 if token in known else GREY for token in range(16)]
        assert tokens.min(1).tolist() == tokens.max(1).tolist() == expected
