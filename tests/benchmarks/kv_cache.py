"""How much the KV cache saves: AR generation of 256 tokens with the cross-entropy head, against recomputing.

    python tests/benchmarks/kv_cache.py            # 24 blocks of 768, batch 8, guidance: minutes on two cores

Recomputing takes longer with every token, so it is timed at evenly spaced steps and the time between them is
interpolated; with the cache every step is timed. Both use the same random weights and tokens.
"""

import argparse
import itertools
import statistics
import time

import torch

from marcli.model.backbone.causal import CausalBackbone
from marcli.model.head.base import HeadSampling
from marcli.model.head.cross_entropy import CrossEntropyHead

TOKENS, CODES = 256, 16384
SETTINGS = HeadSampling(
    temperature=1.0,
    diffusion_steps=1,
    max_timestep=999,
    clip_denoised=None,
    solver="ancestral",
    guidance_refresh=1,
)


def step(backbone, head, known, order, condition, cache, batch):
    """One AR step with guidance: z of both halves, then a code for each image."""
    z = backbone.predict(torch.cat([known, known]), order, condition, num_wanted=1, cache=cache)
    uniform = torch.rand(batch, 1, 1, 2)
    return head.sample(z[:batch], z[batch:], 2.0, uniform, SETTINGS)


def timed(function):
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@torch.inference_mode()
def main() -> None:
    """Print seconds of a whole generation both ways, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--every", type=int, default=32, help="time recomputing at every n-th step")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    backbone = CausalBackbone(
        num_tokens=TOKENS,
        token_dim=1,
        codebook_size=CODES,
        width=options.width,
        depth=options.depth,
        heads=12,
        mlp_ratio=4.0,
        dropout=0.0,
    ).eval()
    head = CrossEntropyHead(codebook_size=CODES, z_dim=options.width).eval()
    batch, rows = options.batch_size, 2 * options.batch_size
    order = torch.arange(TOKENS).expand(rows, -1)
    condition = torch.randn(rows, options.width)
    codes = torch.randint(CODES, (batch, TOKENS, 1))
    steps = [*range(0, TOKENS, options.every), TOKENS - 1]

    def recompute(k):
        return timed(lambda: step(backbone, head, codes[:, :k], order, condition, None, batch))

    recompute(8)
    without = {k: statistics.median(recompute(k) for _ in range(options.repeats)) for k in steps}
    spans = itertools.pairwise(steps)
    seconds_without = without[steps[-1]] + sum((b - a) * (without[a] + without[b]) / 2 for a, b in spans)

    def cached():
        cache = backbone.new_cache(rows, like=condition)
        return sum(
            timed(lambda k=k: step(backbone, head, codes[:, :k], order, condition, cache, batch)) for k in range(TOKENS)
        )

    seconds_with = statistics.median(cached() for _ in range(options.repeats))
    print(f"{options.depth} blocks of {options.width}, batch {batch} with guidance, {torch.get_num_threads()} threads")
    print(f"recomputing {seconds_without:.1f} s, KV cache {seconds_with:.1f} s, {seconds_without / seconds_with:.1f}x")


if __name__ == "__main__":
    main()
