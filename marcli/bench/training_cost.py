"""What one image costs in an optimizer step, from the recipe alone.

The mean over the distribution of mask ratios is exact, because an encoder's cost is quadratic in its length.
"""

import math
from functools import lru_cache

from marcli.bench.cost import (
    TIME_FREQUENCIES,
    block_flops,
    block_parameters,
    dit_components,
    embed_parameters,
    head_parameters,
)
from marcli.model.layers.embed import NUM_TIMESTEPS
from marcli.recipe.model import CausalBackbone, DiTBackbone, MaskedBackbone
from marcli.recipe.schema import Recipe


def training_flops(recipe: Recipe) -> float:
    """Mean operations of one image, forward and backward, from latents on.

    A layer's backward costs two forwards, one where its input needs no gradient. Only hidden tokens pass through the
    last decoder block and the head. Images that are encoded while training pay `tokenizer_work` on top.
    """
    match recipe.model.backbone:
        case MaskedBackbone():
            forward = masked_forward(recipe)
        case CausalBackbone():
            forward = causal_forward(recipe)
        case DiTBackbone():
            first = ("decoder/embed", "decoder/frequencies")  # their inputs need no gradient
            forward = {name: (flops, 2 if name in first else 3) for name, (flops, _) in dit_components(recipe).items()}
    if recipe.model.head is not None:
        forward |= head_forward(recipe, mean_hidden(recipe))
    return sum(passes * flops for flops, passes in forward.values())


@lru_cache
def hidden_distribution(num_tokens: int, minimum: float, std: float) -> tuple[tuple[int, float], ...]:
    """(hidden tokens, probability): ceil(ratio * n), the ratio normal around 1 and cut to [minimum, 1]."""

    def below(ratio: float) -> float:
        return math.erf((min(max(ratio, minimum), 1) - 1) / (std * math.sqrt(2)))

    total = below(1) - below(minimum)
    shares = [(k, (below(k / num_tokens) - below((k - 1) / num_tokens)) / total) for k in range(1, num_tokens + 1)]
    return tuple((k, share) for k, share in shares if share > 0)


def recipe_distribution(recipe: Recipe) -> tuple[tuple[int, float], ...]:
    """The distribution of a recipe's hidden tokens; without a ratio to draw a model learns from all of them."""
    backbone, tokens = recipe.model.backbone, recipe.num_tokens
    if isinstance(backbone, MaskedBackbone) and backbone.mask_ratio_min < 1:
        return hidden_distribution(tokens, backbone.mask_ratio_min, backbone.mask_ratio_std)
    return ((tokens, 1.0),)


def mean_hidden(recipe: Recipe) -> float:
    """Tokens of an image that a step learns from, on average."""
    return sum(count * share for count, share in recipe_distribution(recipe))


Forward = dict[str, tuple[float, int]]  # operations of a forward, passes with the backward


def masked_forward(recipe: Recipe) -> Forward:
    """Encoder over the known tokens, decoder over all, its last block for the hidden ones."""
    backbone, tokens, hidden = recipe.model.backbone, recipe.num_tokens, mean_hidden(recipe)
    width, ratio, whole = backbone.width, backbone.mlp_ratio, backbone.buffer_size + tokens
    weights, embed = block_parameters(width, ratio), embed_parameters(recipe)
    encoder = sum(share * block_flops(whole - k, whole - k, width, ratio) for k, share in recipe_distribution(recipe))
    last = 4.0 * whole * width**2 + hidden * (2.0 * (weights - 2 * width**2) + 4.0 * whole * width)
    decoder = (backbone.decoder_depth - 1) * block_flops(whole, whole, width, ratio) + last
    return {
        "encoder/embed": (2.0 * (tokens - hidden) * embed, 2),
        "encoder/blocks": (backbone.encoder_depth * encoder, 3),
        "decoder/embed": (2.0 * (whole - hidden) * width**2, 3),
        "decoder/blocks": (decoder, 3),
    }


def causal_forward(recipe: Recipe) -> Forward:
    """One pass with teacher forcing over the class token and all tokens but the last."""
    backbone, tokens, embed = recipe.model.backbone, recipe.num_tokens, embed_parameters(recipe)
    blocks = backbone.depth * block_flops(tokens, tokens, backbone.width, backbone.mlp_ratio)
    return {
        "decoder/embed": (2.0 * (tokens - 1) * embed, 2),
        "decoder/blocks": (blocks, 3),
    }


def head_forward(recipe: Recipe, rows: float) -> Forward:
    """The head on `rows` tokens; one that denoises sees each at several timesteps and its condition once.

    Of many timesteps each is embedded once for all images of a forward pass, here those of one process.
    """
    head, weights = recipe.model.head, head_parameters(recipe)
    if not head.denoises:
        return {f"head/{name}": (2.0 * rows * count, 3) for name, count in weights.items()}
    draws, together = rows * head.noise_draws, recipe.train.micro_batch_size or recipe.train.batch_size
    times = min(draws, NUM_TIMESTEPS / together)
    entry, first_time = recipe.token_dim * head.width, TIME_FREQUENCIES * head.width
    return {
        "head/condition": (2.0 * rows * weights["condition"], 3),
        "head/frequencies": (2.0 * times * first_time, 2),
        "head/time": (2.0 * times * (weights["time"] - first_time), 3),
        "head/modulation": (2.0 * draws * weights["modulation"], 3),
        "head/noisy": (2.0 * draws * entry, 2),
        "head/body": (2.0 * draws * (weights["body"] - entry), 3),
    }
