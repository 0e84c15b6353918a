"""The feature cache against a naive one, which computes every token and puts the old features back."""

import pytest
import torch

from marcli.sampling.engine import features as module
from marcli.sampling.engine.features import CachedBackbone, FeatureCache, Fresh, share_at
from marcli.sampling.engine.transformer import FastMaskedBackbone
from tests.model.tiny import model, recipe

BATCH, TOKENS, WANTED = 3, 16, 2


class Naive:
    """Every layer over every token; what must not move is taken from the call before."""

    def __init__(self, backbone, ranking_layer):
        self.backbone, self.ranking_layer = backbone, ranking_layer
        self.before = {}

    def attend(self, block, x, fresh, name):
        """One block; keys, values of slots that are not fresh are those of the call before."""
        attention, b, n = block.attn, *x.shape[:2]
        normed = block.norm1(x)
        q, k, v = attention.qkv(normed).view(b, n, 3, attention.heads, -1).unbind(2)
        if fresh is not None:
            old_k, old_v = self.before[name]
            keep = torch.ones(b, n, dtype=torch.bool)
            keep[:, old_k.shape[1] :] = False
            keep.scatter_(1, fresh, False)
            old_k = torch.cat([old_k, k[:, old_k.shape[1] :]], 1)
            old_v = torch.cat([old_v, v[:, old_v.shape[1] :]], 1)
            k, v = (torch.where(keep[..., None, None], old, new) for old, new in ((old_k, k), (old_v, v)))
        self.before[name] = (k, v)
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k).div(q.shape[-1] ** 0.5).softmax(-1)
        x = x + attention.proj(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))
        return x + block.mlp(block.norm2(x))

    def predict(self, known, order, condition, *, num_wanted, fresh_known, fresh_of):
        """`fresh_known` slots are encoded anew (None: all); `fresh_of(values before, now)` are those decoded anew."""
        of = self.backbone
        x = torch.cat([condition[:, None].expand(-1, of.buffer_size, -1), of.token_embed(known)], 1)
        x = of.embed_norm(x + of.places(of.encoder_position, order[:, : known.shape[1]]))
        for i, block in enumerate(of.encoder):
            x = self.attend(block, x, fresh_known, f"encoder {i}")
        x = of.encoder_norm(x)
        if fresh_known is not None:
            old = torch.cat([self.encoded, x[:, self.encoded.shape[1] :]], 1)
            index = fresh_known[..., None].expand(-1, -1, x.shape[-1])
            x = old.scatter(1, index, x.gather(1, index))
        self.encoded = x
        masks = of.mask_token.expand(len(x), order.shape[1] - known.shape[1], -1)
        x = torch.cat([of.decoder_embed(x), masks], 1) + of.places(of.decoder_position, order)
        fresh = None
        for i, block in enumerate(of.decoder):
            if i == self.ranking_layer and fresh_of is not None:
                values = block.attn.qkv(block.norm1(x)).chunk(3, -1)[2]
                fresh = fresh_of(self.before[f"decoder {i}"][1].flatten(2), values)
            x = self.attend(block, x, fresh if i > self.ranking_layer else None, f"decoder {i}")
        first = of.buffer_size + known.shape[1]
        z = of.decoder_norm(x[:, first : first + num_wanted])
        return z + of.z_position[0][order[:, known.shape[1] : known.shape[1] + num_wanted]]


@pytest.fixture(name="given")
def inputs():
    of = recipe("masked", "random", "diffusion")
    deeper = of.model.backbone.model_copy(update={"decoder_depth": 6})
    whole = model(of.model_copy(update={"model": of.model.model_copy(update={"backbone": deeper})}))
    torch.manual_seed(0)
    tokens = torch.randn(BATCH, TOKENS, whole.token_dim)
    order = torch.stack([torch.randperm(TOKENS) for _ in range(BATCH)])
    return whole.backbone, tokens, order, whole.condition(torch.tensor([1, 7, 4]))


@torch.inference_mode()
def test_whole_runs_are_the_backbone(given):
    backbone, tokens, order, condition = given
    cache = FeatureCache(CachedBackbone(FastMaskedBackbone(backbone)))
    for known, wanted in ((0, 3), (3, 13), (5, 1)):
        z = cache.predict(tokens[:, :known], order, condition, num_wanted=wanted, share=None)
        expected = backbone.predict(tokens[:, :known], order, condition, num_wanted=wanted)
        assert (z - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
@torch.inference_mode()
def test_lazy_runs_are_the_naive_ones(given, share, monkeypatch):
    monkeypatch.setattr(module, "SPARE_TOKENS", 2)
    monkeypatch.setattr(module, "BUFFER_IS_STALE", 4 / TOKENS)
    backbone, tokens, order, condition = given
    cache, naive = FeatureCache(CachedBackbone(FastMaskedBackbone(backbone))), Naive(backbone, ranking_layer=3)
    naive_share, old, differs = share, 3, False
    inputs = tokens[:, :old], order, condition
    cache.predict(*inputs, num_wanted=WANTED, share=None)
    naive.predict(*inputs, num_wanted=WANTED, fresh_known=None, fresh_of=None)
    for known, buffer_is_due in ((5, False), (7, True), (10, False)):
        first = backbone.buffer_size + old
        forced = torch.arange(first, backbone.buffer_size + known + WANTED)
        count = max(len(forced) + 2, round(naive_share * (backbone.buffer_size + TOKENS)))

        def moving(before, now, forced=forced, count=count):
            similarity = torch.nn.functional.cosine_similarity(before, now, dim=-1)
            similarity[:, forced] = -2.0
            return (similarity * 1024).round().argsort(dim=1, stable=True)[:, :count]

        fresh = torch.arange(first, backbone.buffer_size + known)
        if buffer_is_due:
            fresh = torch.cat([torch.arange(backbone.buffer_size), fresh])
        inputs = tokens[:, :known], order, condition
        z = cache.predict(*inputs, num_wanted=WANTED, share=share)
        expected = naive.predict(
            *inputs, num_wanted=WANTED, fresh_known=fresh.expand(BATCH, -1), fresh_of=None if share == 1.0 else moving
        )
        assert (z - expected).abs().max() <= 1e-5 * expected.abs().max()
        exact = backbone.predict(*inputs, num_wanted=WANTED)
        differs |= bool((z - exact).abs().max() > 1e-3 * exact.abs().max())
        old = known
    assert differs


def test_wanted_tokens_stand_first_however_many_there_are(given):
    cached = CachedBackbone(FastMaskedBackbone(given[0]))
    cached.num_slots = num_slots = 20_000
    values = torch.zeros(1, 1, num_slots, 1)
    fresh = Fresh(0, True, None, num_wanted=15_000)
    slots = cached.moving_slots(values, values, 5_000 - cached.backbone.buffer_size, fresh)
    assert slots[0].tolist() == [*range(5_000, 20_000), *range(5_000)]


def test_shares_fall_over_the_steps():
    shares = [share_at(index, 64) for index in range(64)]
    assert shares == sorted(shares, reverse=True)
    assert (shares[19], shares[20], shares[21], shares[34], shares[39], shares[63]) == (1.0, 0.6, 0.5, 0.15, 0.12, 0.05)
    assert share_at(0, 1) == 1.0
