"""Embeddings of timesteps: many at once are looked up, which changes neither values nor gradients."""

import pytest
import torch

from marcli.model.layers.embed import NUM_TIMESTEPS, TimestepEmbedding


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
