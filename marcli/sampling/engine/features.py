"""A cache of the masked transformer's features: between whole runs only the tokens that change are computed.

After the token cache of LazyMAR (2503.12450). From one AR step to the next most features hardly move. So the encoder
computes the new tokens only, and its buffer once enough of them have come; the first layers of the decoder compute all
tokens, and from there on only the new and wanted ones and those whose values moved most. All others keep their old keys
and values.

Tokens travel in reveal order, so a token has the same slot (buffer, then tokens) at every AR step.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from marcli.model.layers.embed import at_positions, take
from marcli.sampling.engine.transformer import FastBlock, FastMaskedBackbone

RANKING_LAYER = 3  # of the decoder, counted from 0: the layer whose values tell which tokens moved
SPARE_TOKENS = 15  # computed at least, beside new and wanted ones
LIKENESS_STEP = 1 / 1024  # cosine similarities closer than this count as equal; the earlier slot comes first
# Share of all slots that deeper decoder layers compute, until that share of the AR steps is over.
SHARES = ((20 / 64, 1.0), (21 / 64, 0.6), (25 / 64, 0.5), (30 / 64, 0.4), (35 / 64, 0.15), (40 / 64, 0.12), (1.0, 0.05))
BUFFER_IS_STALE = 1 / 20  # once this share of all tokens is new to it
WHOLE_AT_FIRST = 5 / 64  # of the AR steps


def share_at(index: int, num_steps: int) -> float:
    """Share of the slots that deeper decoder layers compute at AR step `index`."""
    return next(share for until, share in SHARES if index < until * num_steps)


@dataclass(frozen=True)
class Fresh:
    """What an AR step computes anew."""

    known: int  # known tokens, in reveal order, from this one on
    buffer: bool  # the encoder's
    share: float | None  # of the slots, in deeper decoder layers; None: all
    num_wanted: int


class FeatureCache:
    """What a cached backbone knows of a batch, and so what it has to compute at the next AR step."""

    def __init__(self, compute: Callable[[list[Tensor], Fresh], Tensor]) -> None:
        """`compute` is a `CachedBackbone`, or one that is recorded."""
        self.compute = compute
        self.num_known = 0
        self.known_to_buffer = 0  # tokens that were known when it was encoded last

    def predict(
        self,
        known: Shaped[Tensor, "batch known dim"],
        order: Int[Tensor, "batch tokens"],
        condition: Float[Tensor, "batch width"],
        *,
        num_wanted: int,
        share: float | None,
    ) -> Float[Tensor, "batch wanted width"]:
        """As `MaskedBackbone.predict`; deeper decoder layers compute `share` of the slots, None computes everything.

        The first call for a batch computes everything.
        """
        whole, num_known = share is None, known.shape[1]
        stale = num_known - self.known_to_buffer >= BUFFER_IS_STALE * order.shape[1]
        fresh = Fresh(0 if whole else self.num_known, whole or stale, share, num_wanted)
        z = self.compute([known, order, condition], fresh)
        self.num_known = num_known
        if fresh.buffer:
            self.known_to_buffer = num_known
        return z


class Features:
    """What was computed last of every token of a batch; its tensors stay where recordings read and write them."""

    def __init__(self, blocks: Iterable[FastBlock], num_slots: int, like: Float[Tensor, "batch width"]) -> None:
        batch, width = like.shape
        self.inputs = like.new_zeros(batch, num_slots, width)  # of the decoder
        self.keys_values: dict[FastBlock, tuple[Tensor, Tensor]] = {}
        for block in blocks:
            shape = (batch, block.heads, num_slots, width // block.heads)
            self.keys_values[block] = (like.new_zeros(shape), like.new_zeros(shape))

    def update(
        self, block: FastBlock, k: Tensor, v: Tensor, slots: Int[Tensor, "batch rows"]
    ) -> tuple[Float[Tensor, "batch heads slots dim"], Float[Tensor, "batch heads slots dim"]]:
        """Write keys and values of these slots; return those of all slots."""
        keys, values = self.keys_values[block]
        for store, new in ((keys, k), (values, v)):
            store.transpose(1, 2)[rows_of(slots), slots] = new.transpose(1, 2)
        return keys, values


class CachedBackbone:
    """A masked backbone that computes what is fresh and takes everything else from before, batch size by batch size."""

    def __init__(self, backbone: FastMaskedBackbone) -> None:
        self.backbone = backbone
        self.ranking_layer = min(RANKING_LAYER, len(backbone.decoder) - 2)
        self.num_slots = backbone.buffer_size + backbone.z_position.shape[1]
        self.features: dict[int, Features] = {}

    def __call__(self, tensors: Sequence[Tensor], fresh: Fresh) -> Float[Tensor, "batch wanted width"]:
        """z of the wanted tokens; `tensors` are known tokens, order and condition, as in `MaskedBackbone.predict`."""
        known, order, condition = tensors
        if len(known) not in self.features:
            kept = (*self.backbone.encoder, *self.backbone.decoder[self.ranking_layer :])
            self.features[len(known)] = Features(kept, self.num_slots, condition)
        features, num_known = self.features[len(known)], known.shape[1]
        if fresh.share is None:
            features.inputs.copy_(self.nothing_known(order))
        self.encode(features, known, order, condition, fresh)
        z = self.decode(features, num_known, fresh)
        return z + at_positions(self.backbone.z_position, order[:, num_known : num_known + fresh.num_wanted])

    def nothing_known(self, order: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch slots width"]:
        """The decoder's inputs before any is encoded: mask tokens and positions."""
        positions = self.backbone.places(self.backbone.decoder_position, order)
        return positions + self.backbone.mask_token.to(positions.dtype)

    def encode(self, features: Features, known: Tensor, order: Tensor, condition: Tensor, fresh: Fresh) -> None:
        """Encode what is fresh into the decoder's inputs."""
        backbone = self.backbone
        x, end = backbone.token_embed(known[:, fresh.known :]), backbone.buffer_size + known.shape[1]
        buffer = torch.arange(backbone.buffer_size, device=x.device).expand(len(x), -1)
        slots = torch.arange(backbone.buffer_size + fresh.known, end, device=x.device).expand(len(x), -1)
        if fresh.buffer:
            x = torch.cat([condition.unsqueeze(1).expand(-1, backbone.buffer_size, -1), x], dim=1)
            slots = torch.cat([buffer, slots], dim=1)
        positions = torch.cat([buffer, order + backbone.buffer_size], dim=1).gather(1, slots)
        x = backbone.embed_norm(x + at_positions(backbone.encoder_position, positions))
        for block in backbone.encoder:
            q, k, v = block.queries_keys_values(x)
            keys, values = features.update(block, k, v, slots)
            x = block.rest(x, q, keys[:, :, :end], values[:, :, :end])
        x = backbone.decoder_embed(backbone.encoder_norm(x)) + at_positions(backbone.decoder_position, positions)
        features.inputs[rows_of(slots), slots] = x

    def decode(self, features: Features, num_known: int, fresh: Fresh) -> Float[Tensor, "batch wanted width"]:
        """z without its position embedding."""
        backbone, x = self.backbone, features.inputs
        for block in backbone.decoder[: self.ranking_layer]:
            x = block(x)
        block = backbone.decoder[self.ranking_layer]
        q, k, v = block.queries_keys_values(x)
        keys, values = features.keys_values[block]
        slots = self.moving_slots(values, v, num_known, fresh)
        keys.copy_(k)
        values.copy_(v)
        x = block.rest(take(x, slots), q.transpose(1, 2)[rows_of(slots), slots].transpose(1, 2), k, v)
        for block in backbone.decoder[self.ranking_layer + 1 : -1]:
            q, k, v = block.queries_keys_values(x)
            x = block.rest(x, q, *features.update(block, k, v, slots))
        last, wanted = backbone.decoder[-1], x[:, : fresh.num_wanted]
        (q,) = last.heads_of(last.q(last.norm1(wanted)), 1)
        k, v = last.heads_of(last.kv(last.norm1(x)), 2)
        return backbone.decoder_norm(last.rest(wanted, q, *features.update(last, k, v, slots)))

    def moving_slots(self, before: Tensor, now: Tensor, num_known: int, fresh: Fresh) -> Int[Tensor, "batch moving"]:
        """The wanted slots, the new ones, then those whose values [batch, heads, slots, dim] are least like before."""
        first = self.backbone.buffer_size + num_known
        new = first if fresh.share is None else self.backbone.buffer_size + fresh.known
        num_forced = first + fresh.num_wanted - new
        count = self.num_slots
        if fresh.share is not None:
            count = min(count, max(num_forced + SPARE_TOKENS, round(fresh.share * count)))
        if count == self.num_slots:  # the others in any order
            likeness = torch.zeros(len(now), count, device=now.device)
        else:
            before, now = (each.transpose(1, 2).flatten(2).float() for each in (before, now))
            likeness = F.cosine_similarity(before, now, dim=-1)
        # Hidden tokens often move equally little; without rounding the choice between them would be an accident.
        likeness = (likeness / LIKENESS_STEP).round()
        at_the_front = torch.arange(-num_forced, 0, device=now.device) - 2 / LIKENESS_STEP  # below any likeness
        likeness[:, new : first + fresh.num_wanted] = at_the_front.roll(first - new).to(likeness.dtype)
        return likeness.argsort(dim=1, stable=True)[:, :count]


def rows_of(slots: Int[Tensor, "batch slots"]) -> Int[Tensor, "batch 1"]:
    """The first index beside which slots are a second: assigning so costs a fifth of scattering."""
    return torch.arange(len(slots), device=slots.device).unsqueeze(1)
