"""The fast engine's parts through CUDA graphs.

Generation repeats a handful of shapes for every batch (7 counts of revealed tokens and 64 of known ones at 64 AR
steps), so that nearly all of its thousands of kernels come from recordings. A single batch records its head and never
its transformer.
"""

import copy
from collections.abc import Hashable, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int, Shaped
from torch import Generator, Tensor, nn

from marcli.model.backbone.dit import DiT
from marcli.model.head.base import Head, HeadSampling
from marcli.model.layers.attention import KeyValueCache
from marcli.runtime.graphs import Capture, Recorded
from marcli.sampling.engine.denoise import FastDiffusionHead
from marcli.sampling.engine.transformer import FastCausalBackbone, FastMaskedBackbone


class RecordedHead(Head):
    """A fast diffusion head whose whole reverse process is one recording."""

    def __init__(self, head: FastDiffusionHead, capture: Capture) -> None:
        super().__init__()
        self.head = head
        self.recorded = Recorded(partial(run_head, head), capture)

    def noise(
        self, generator: Generator, num_tokens: int, num_steps: int, settings: HeadSampling
    ) -> Float[Tensor, "tokens draws dim"]:
        """The head's tape."""
        return self.head.noise(generator, num_tokens, num_steps, settings)

    def sample(
        self,
        z: Float[Tensor, "batch wanted z_dim"],
        z_null: Float[Tensor, "batch wanted z_dim"] | None,
        guidance: float,
        noise: Float[Tensor, "batch wanted draws dim"],
        settings: HeadSampling,
    ) -> Float[Tensor, "batch wanted dim"]:
        """As the head's; the guidance becomes a tensor, since it changes while the recording stays."""
        scale = torch.full((), guidance, device=z.device)
        return self.recorded([z, scale, noise] + ([] if z_null is None else [z_null]), settings)


def run_head(head: FastDiffusionHead, tensors: Sequence[Tensor], settings: HeadSampling) -> Tensor:
    """What is recorded of a head.

    Not a method: a recording that refers back to its owner would keep both on the GPU after their last use.
    """
    z, scale, noise, *null = tensors
    return head.sample(z, null[0] if null else None, scale, noise, settings)


class RecordedBackbone(nn.Module):
    """A fast backbone with one recording per number of known tokens."""

    def __init__(self, backbone: FastMaskedBackbone | FastCausalBackbone, capture: Capture) -> None:
        super().__init__()
        self.backbone = backbone
        self.caches: dict[Hashable, list[KeyValueCache]] = {}
        self.recorded = Recorded(partial(run_backbone, backbone, self.caches), capture)

    def new_cache(self, batch_size: int, like: Tensor) -> list[KeyValueCache]:
        """A causal backbone's cache; the same for all batches of a size, for recordings use it in place."""
        key = (batch_size, like.dtype)
        if key not in self.caches:
            self.caches[key] = self.backbone.new_cache(batch_size, like)
        return self.caches[key]

    def predict(
        self,
        known: Shaped[Tensor, "batch known dim"],
        order: Int[Tensor, "batch tokens"],
        condition: Float[Tensor, "batch width"],
        *,
        num_wanted: int,
        cache: list[KeyValueCache] | None = None,
    ) -> Float[Tensor, "batch wanted width"]:
        """As the backbone's; a cache holds all known tokens but the last."""
        return self.recorded([known, order, condition], (num_wanted, cache is not None))


def run_backbone(
    backbone: FastMaskedBackbone | FastCausalBackbone,
    caches: dict[Hashable, list[KeyValueCache]],
    tensors: Sequence[Tensor],
    setting: tuple[int, bool],
) -> Tensor:
    """What is recorded of a backbone; it can run twice, since the length of a cache follows from the known tokens."""
    known, order, condition = tensors
    num_wanted, cached = setting
    cache = caches[len(known), condition.dtype] if cached else None
    for layer in cache or []:
        layer.length = known.shape[1]
    return backbone.predict(known, order, condition, num_wanted=num_wanted, cache=cache)


def recorded_dit(model: DiT, capture: Capture) -> DiT:
    """The same DiT, each pass through the network one recording."""
    recorded = Recorded(lambda tensors, setting: model.denoise(*tensors), capture)
    twin = copy.copy(model)
    twin.denoise = lambda x, t, labels: recorded([x, t, labels], None)
    return twin
