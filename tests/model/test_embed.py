"""Embeddings of timesteps: many at once are looked up, which changes neither values nor gradients; first values."""

import math
import re

import pytest
import torch
from torch import nn

from marcli.model.build import build_model
from marcli.model.layers.embed import NUM_TIMESTEPS, TimestepEmbedding
from tests.model import tiny


@pytest.fixture
def embedding():
    torch.manual_seed(0)
    return TimestepEmbedding(width=8).double()


def test_looked_up_embeddings_and_their_gradients_are_those_of_the_rows(embedding):
    t = torch.randint(NUM_TIMESTEPS, (7, 50, 3))
    towards, gradients = torch.randn(*t.shape, 8, dtype=torch.double), []
    for embed in (embedding.embed, embedding):
        embedding.zero_grad()
        values = embed(t)
        (values * towards).sum().backward()
        gradients.append([values.double(), *(parameter.grad for parameter in embedding.parameters())])
    for row, looked_up in zip(*gradients, strict=True):
        assert (row - looked_up).abs().max() <= 1e-6 * row.abs().max()


def test_the_mlp_never_sees_more_rows_than_there_are_timesteps(embedding, monkeypatch):
    rows, embed = [], embedding.embed
    monkeypatch.setattr(embedding, "embed", lambda t: rows.append(t.numel()) or embed(t))
    for count in (1, NUM_TIMESTEPS, NUM_TIMESTEPS + 1, 5000):
        embedding(torch.randint(NUM_TIMESTEPS, (count,)))
    assert rows == [1, NUM_TIMESTEPS, NUM_TIMESTEPS, NUM_TIMESTEPS]


ZERO = re.compile(r"bias$|modulation|denoiser\.out|norm1\.linear|proj_out")  # AdaLN and what the networks end with
THIRD = re.compile(r"to_[qkv]\.")  # of one published layer
NORMAL = re.compile(r"time_embed|timestep_embedder")  # beside what is no layer


@pytest.mark.parametrize(
    ("backbone", "order", "head"),
    [
        ("masked", "random", "diffusion"),
        ("masked", "raster", "l2"),
        ("causal", "raster", "cross_entropy"),
        ("dit", None, None),
    ],
)
def test_parameters_start_as_in_the_published_code(backbone, order, head):
    torch.manual_seed(0)
    model = build_model(tiny.recipe(backbone, order, head))
    for name, value in model.named_parameters():
        layer = model.get_submodule(name.rpartition(".")[0])
        if ZERO.search(name):
            assert not value.any(), name
        elif isinstance(layer, nn.LayerNorm):
            assert (value == 1).all(), name
        elif isinstance(layer, nn.Linear | nn.Conv2d) and not NORMAL.search(name):
            rows, columns = value.flatten(1).shape
            rows *= 3 if THIRD.search(name) else 1
            bound = math.sqrt(6 / (rows + columns))  # Xavier's, uniform
            assert 0.9 * bound < value.abs().max() <= bound, name
            assert value.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15), name
        else:
            assert value.std().item() == pytest.approx(0.02, rel=0.3), name
            assert value.mean().abs() < 0.01 and value.abs().max() < 0.1, name
