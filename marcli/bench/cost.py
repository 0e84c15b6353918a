"""What an image costs in operations, and what a batch reads in weights, from the recipe alone.

Pure arithmetic, no torch. Costs come as named components ("decoder/blocks", "head/modulation"), so that a faster engine
can say exactly which operations it leaves out. Operations are 2 per multiply-add of matrix products; element-wise work,
normalisation and biases are not counted. Guidance counts both halves.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import assert_never

from marcli.bench.autoencoder_cost import tokenizer_work
from marcli.recipe.model import CausalBackbone, CrossEntropyHead, DiffusionHead, DiTBackbone, L2Head, MaskedBackbone
from marcli.recipe.schema import Recipe

TIME_FREQUENCIES = 256  # width of the sinusoidal time embedding, in the diffusion head and in a DiT


@dataclass(frozen=True)
class Component:
    """One group of matrix products.

    `flops` per image; `parameters` of the weights one evaluation reads; `evaluations` per batch.
    """

    flops: float
    parameters: float
    evaluations: float


@dataclass(frozen=True)
class Cost:
    """Operations of one image by component; `unknown` names parts whose architecture the recipe does not tell."""

    components: Mapping[str, Component]
    unknown: tuple[str, ...] = field(default=())

    @property
    def flops(self) -> float:
        """Operations of one image."""
        return sum(component.flops for component in self.components.values())

    def weight_reads(self) -> float:
        """Parameters read from memory per batch, when nothing stays in a cache between two evaluations."""
        return sum(component.parameters * component.evaluations for component in self.components.values())


def plus(unknown: Sequence[str]) -> str:
    """What stands behind a sum of operations that lacks parts, as ` + tokenizer`."""
    return "".join(f" + {name}" for name in unknown)


def hidden_counts(num_tokens: int, num_steps: int) -> list[int]:
    """Tokens still hidden before each step of the cosine schedule, then 0 after the last."""
    counts = [num_tokens]
    for step in range(1, num_steps):
        counts.append(max(1, min(counts[-1] - 1, math.floor(num_tokens * math.cos(math.pi / 2 * step / num_steps)))))
    return [*counts, 0]


def denoising_steps(diffusion_steps: int, max_timestep: int) -> int:
    """Timesteps left when those above `max_timestep` fall together."""
    if diffusion_steps == 1:
        return 1
    stride = 999 / (diffusion_steps - 1)
    return len({min(round(index * stride), max_timestep) for index in range(diffusion_steps)})


def block_flops(queries: float, keys: float, width: int, mlp_ratio: float) -> float:
    """A transformer block that updates `queries` tokens and attends to `keys`; keys of other tokens are at hand."""
    return 2 * queries * block_parameters(width, mlp_ratio) + 4 * queries * keys * width


def block_parameters(width: int, mlp_ratio: float) -> int:
    """Weights of the four attention projections and the two MLP layers."""
    return 4 * width**2 + 2 * width * int(width * mlp_ratio)


def embed_parameters(recipe: Recipe) -> int:
    """Weights of the layer that embeds tokens; codes are looked up in a table instead."""
    return recipe.token_dim * recipe.model.backbone.width if recipe.latent.codebook_size is None else 0


def head_parameters(recipe: Recipe) -> dict[str, int]:
    """Weights of the head by what they do."""
    head, width, dim = recipe.model.head, recipe.model.backbone.width, recipe.token_dim
    match head:
        case DiffusionHead():
            return {
                "condition": width * head.width,
                "time": TIME_FREQUENCIES * head.width + head.width**2,
                "modulation": (3 * head.depth + 2) * head.width**2,
                "body": 2 * head.depth * head.width**2 + dim * head.width + head.width * 2 * dim,
            }
        case CrossEntropyHead():
            return {"logits": width * (recipe.latent.codebook_size or 0)}
        case L2Head():
            return {"regression": width * dim}
        case _:
            assert_never(head)


def published_cost(recipe: Recipe) -> Cost:
    """Cost of one generated image under `recipe.sample`, doing everything the published code does.

    That is: every decoder block for every token, time and condition embedded for every row of the head.
    """
    match recipe.model.backbone:
        case MaskedBackbone():
            components = masked_sampling(recipe)
        case CausalBackbone():
            components = causal_sampling(recipe)
        case DiTBackbone():
            components = dit_sampling(recipe)
    work = tokenizer_work(recipe)
    if work is None:
        return Cost(components, unknown=("tokenizer",))
    decode = work[1]
    return Cost(components | {"tokenizer/decode": Component(decode.flops, decode.parameters, 1)})


def plain_cost(recipe: Recipe, *, batch_size: int) -> Cost:
    """Cost of one image of a batch as `marcli.sampling` does it without an engine.

    The last decoder block runs for the new tokens alone, and time is embedded once per diffusion step.
    """
    cost = published_cost(recipe)
    components = dict(cost.components)
    if isinstance(recipe.model.backbone, MaskedBackbone):
        blocks, saved = components["decoder/blocks"], last_block_saving(recipe)
        components["decoder/blocks"] = replace(blocks, flops=blocks.flops - saved)
    if "head/time" in components:
        time = components["head/time"]
        flops = 2.0 * time.parameters * time.evaluations / batch_size
        components["head/time"] = replace(time, flops=flops)
    return Cost(components, cost.unknown)


def halves(recipe: Recipe) -> int:
    """Evaluations per image and step: 2 with guidance."""
    return 2 if recipe.sample.cfg > 1 else 1


def masked_sampling(recipe: Recipe) -> dict[str, Component]:
    """Encoder over visible and buffer tokens, decoder over all, head over the tokens of each step."""
    backbone, tokens, steps = recipe.model.backbone, recipe.num_tokens, recipe.sampling_steps
    width, ratio, buffer = backbone.width, backbone.mlp_ratio, backbone.buffer_size
    hidden = hidden_counts(tokens, steps)[:-1]
    lengths = [buffer + tokens - count for count in hidden]
    guided, weights = halves(recipe), block_parameters(width, ratio)
    encoder = backbone.encoder_depth * sum(block_flops(n, n, width, ratio) for n in lengths)
    decoder = backbone.decoder_depth * steps * block_flops(buffer + tokens, buffer + tokens, width, ratio)
    embed = embed_parameters(recipe)
    rows = sum(hidden) if recipe.order == "confidence" else tokens
    return {
        "encoder/embed": Component(guided * 2.0 * (steps * tokens - sum(hidden)) * embed, embed, steps),
        "encoder/blocks": Component(guided * encoder, backbone.encoder_depth * weights, steps),
        "decoder/embed": Component(guided * 2.0 * sum(lengths) * width**2, width**2, steps),
        "decoder/blocks": Component(guided * decoder, backbone.decoder_depth * weights, steps),
    } | head_sampling(recipe, rows=guided * rows, steps=steps)


def causal_sampling(recipe: Recipe) -> dict[str, Component]:
    """One token per step: against cached keys, or with the whole prefix computed again."""
    backbone, tokens = recipe.model.backbone, recipe.num_tokens
    width, ratio, guided = backbone.width, backbone.mlp_ratio, halves(recipe)
    cached = recipe.uses_kv_cache
    lengths = range(1, tokens + 1)  # the class token, then all but the last token
    blocks = sum(block_flops(1 if cached else n, n, width, ratio) for n in lengths)
    embed = embed_parameters(recipe)
    embedded = tokens - 1 if cached else sum(lengths) - tokens
    return {
        "decoder/embed": Component(guided * 2.0 * embedded * embed, embed, tokens),
        "decoder/blocks": Component(
            guided * backbone.depth * blocks, backbone.depth * block_parameters(width, ratio), tokens
        ),
    } | head_sampling(recipe, rows=guided * tokens, steps=tokens)


def head_sampling(recipe: Recipe, *, rows: int, steps: int) -> dict[str, Component]:
    """The head on `rows` tokens per image, spread over `steps` AR steps."""
    passes = 1
    if recipe.denoises:
        passes = denoising_steps(recipe.sample.diffusion_steps, recipe.sample.max_timestep)
    return {
        f"head/{name}": Component(2.0 * parameters * rows * passes, parameters, steps * passes)
        for name, parameters in head_parameters(recipe).items()
    }


def dit_components(recipe: Recipe) -> dict[str, tuple[float, int]]:
    """(operations, weights) of one pass of a DiT over one image.

    Time and class are embedded by one module, anew for every block and for the output, as diffusers has it.
    """
    backbone, tokens, width = recipe.model.backbone, recipe.num_tokens, recipe.model.backbone.width
    embeddings, frequencies, time = backbone.depth + 1, TIME_FREQUENCIES * width, width**2
    modulation, patch = (6 * backbone.depth + 2) * width**2, recipe.token_dim * width
    return {
        "decoder/frequencies": (2.0 * embeddings * frequencies, frequencies),
        "decoder/time": (2.0 * embeddings * time, time),
        "decoder/modulation": (2.0 * modulation, modulation),
        "decoder/embed": (2.0 * tokens * patch, patch),
        "decoder/blocks": (
            backbone.depth * block_flops(tokens, tokens, width, 4),
            backbone.depth * block_parameters(width, 4),
        ),
        "decoder/output": (2.0 * tokens * 2 * patch, 2 * patch),
    }


def dit_sampling(recipe: Recipe) -> dict[str, Component]:
    """Every diffusion step is one pass over the whole grid."""
    steps = denoising_steps(recipe.sample.diffusion_steps, recipe.sample.max_timestep)
    return {
        name: Component(halves(recipe) * steps * flops, weights, steps)
        for name, (flops, weights) in dit_components(recipe).items()
    }


def last_block_saving(recipe: Recipe) -> float:
    """Operations per image of the last decoder block that no new token needs: keys and values stay."""
    backbone, hidden = recipe.model.backbone, hidden_counts(recipe.num_tokens, recipe.sampling_steps)
    width, whole = backbone.width, backbone.buffer_size + recipe.num_tokens
    weights = block_parameters(width, backbone.mlp_ratio) - 2 * width**2
    predicts_all = recipe.order == "confidence"
    wanted = [before - (0 if predicts_all else after) for before, after in pairwise(hidden)]
    return halves(recipe) * sum((whole - new) * (2.0 * weights + 4.0 * whole * width) for new in wanted)
