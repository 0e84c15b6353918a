"""CUDA graphs: a function of tensors is recorded once per combination of shapes, then replayed without the host.

Generation repeats a handful of shapes for every batch (7 counts of revealed tokens and 64 of known ones at 64 AR
steps), so that nearly all of its thousands of kernels come from recordings. A recording costs about two calls, so in
short work a combination is recorded when it comes again: a single batch records its head and never its transformer.
Where recording fails or memory runs short, the function itself is called, and one line says why.
"""

import copy
import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int, Shaped
from torch import Generator, Tensor, nn

from marcli.model.backbone.dit import DiT
from marcli.model.head.base import Head, HeadSampling
from marcli.model.layers.attention import KeyValueCache
from marcli.sampling.engine.denoise import FastDiffusionHead
from marcli.sampling.engine.transformer import FastCausalBackbone, FastMaskedBackbone

WARM_UP_CALLS = 1  # on the side stream, of what has run before
MEMORY_KEPT_FREE = 0.1  # of the device; no more recordings below it

log = logging.getLogger("marcli")

Replay = Callable[[], None]
Capture = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]


class CudaGraphs:
    """Captures CUDA graphs that share one pool of memory."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        """Record `function`; return what replays it, and the tensor in which its result then lies."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_CALLS):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.empty_cache()  # what is only kept back counts as free
        free, total = torch.cuda.mem_get_info()
        if free < MEMORY_KEPT_FREE * total:
            raise MemoryError(f"only {free / 2**30:.1f} GiB of GPU memory are free")
        graph = torch.cuda.CUDAGraph()
        # Other threads (of a data loader, say) may go on using the device meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            result = function()
        return graph.replay, result


@dataclass(frozen=True)
class Recording:
    """Where a recorded function reads, how it is run, and where its result lies."""

    inputs: list[Tensor]
    replay: Replay
    result: Tensor


class Recorded:
    """`function(tensors, setting)` through recordings, one for each setting and combination of shapes."""

    def __init__(self, function: Callable[..., Tensor], capture: Capture, *, at_once: bool) -> None:
        """`at_once` records a combination when it has been used once, otherwise only when it comes again."""
        self.function, self.capture, self.at_once = function, capture, at_once
        self.recordings: dict[Hashable, Recording] = {}
        self.seen: set[Hashable] = set()
        self.gave_up = False

    def __call__(self, tensors: Sequence[Tensor], setting: Hashable) -> Tensor:
        key = (setting, *((tensor.shape, tensor.dtype) for tensor in tensors))
        if key in self.seen:
            self.record(key, tensors, setting)
        if key not in self.recordings:
            result = self.function(tensors, setting)  # first without a recording: it also compiles and warms up
            if self.at_once:
                self.record(key, tensors, setting)
            self.seen.add(key)
            return result
        recording = self.recordings[key]
        for place, tensor in zip(recording.inputs, tensors, strict=True):
            place.copy_(tensor)
        recording.replay()
        return recording.result.clone()  # the next replay writes over it

    def record(self, key: Hashable, tensors: Sequence[Tensor], setting: Hashable) -> None:
        """Add a recording where there is none; after the first failure no other is tried."""
        if key in self.recordings or self.gave_up:
            return
        inputs = [tensor.clone() for tensor in tensors]
        try:
            replay, result = self.capture(partial(self.function, inputs, setting))
        except (RuntimeError, MemoryError) as error:
            self.gave_up = True
            log.warning(f"sampling goes on without further CUDA graphs: {str(error).splitlines()[0]}")
            return
        self.recordings[key] = Recording(inputs, replay, result)


class RecordedHead(Head):
    """A fast diffusion head whose whole reverse process is one recording."""

    def __init__(self, head: FastDiffusionHead, capture: Capture, *, at_once: bool) -> None:
        super().__init__()
        self.head = head
        self.recorded = Recorded(partial(run_head, head), capture, at_once=at_once)

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

    def __init__(self, backbone: FastMaskedBackbone | FastCausalBackbone, capture: Capture, *, at_once: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.caches: dict[Hashable, list[KeyValueCache]] = {}
        self.recorded = Recorded(partial(run_backbone, backbone, self.caches), capture, at_once=at_once)

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


def recorded_dit(model: DiT, capture: Capture, *, at_once: bool) -> DiT:
    """The same DiT, each pass through the network one recording."""
    recorded = Recorded(lambda tensors, setting: model.denoise(*tensors), capture, at_once=at_once)
    twin = copy.copy(model)
    twin.denoise = lambda x, t, labels: recorded([x, t, labels], None)
    return twin
