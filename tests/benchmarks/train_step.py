"""A training step against the published one, side by side: same machine, model, batch and share of hidden tokens.

    python tests/benchmarks/train_step.py
    git clone https://github.com/LTH14/mar && MARCLI_PUBLISHED_MAR=mar python tests/benchmarks/train_step.py

`plain` is the published algorithm in our modules: the head sees every token four times, hidden or not, with its arrays
looked up on the host (see as_published.py), and everything is done in the published order (autocast forward, finite
check, backward, clipping, AdamW, average of the weights in a Python loop). With MARCLI_PUBLISHED_MAR the published
code itself takes steps too, its `.cuda()` calls made no-ops on a CPU. Every contestant has a process of its own; they
take turns.
Medians of wall time and of processor time are printed, the last line is JSON.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from marcli.model.build import build_model
from marcli.model.grid import to_tokens
from marcli.model.layers.embed import at_positions, take
from marcli.recipe.reader import read_recipe
from marcli.runtime.accelerator import count_gpus, start_processes
from marcli.training.agreement import Agreement
from marcli.training.backward import build_backward
from marcli.training.blocks import compile_blocks, compiling_pays
from marcli.training.checkpoint import Trained
from marcli.training.ema import Ema
from marcli.training.feed import Feed
from marcli.training.loop import forward_backward
from marcli.training.nonfinite import NonFiniteGuard
from marcli.training.optim import apply_step, build_optimizer, gradient_norm
from marcli.training.setup import Job
from tests.benchmarks import as_published
from tests.benchmarks.contestants import started

HIDDEN_SHARE = 0.867  # mean of the published law
TOTAL = 10**6  # steps of the run of which some are timed
GPU_STEPS = 8  # in a turn: the host of a GPU runs ahead where nothing makes it wait


class RandomLatents:
    """A latent cache of noise."""

    is_latents, num_images = True, 100_000

    def __init__(self, shape):
        self.shape = shape

    def fetch(self, indices, flips):
        return torch.randn(len(indices), *self.shape), torch.from_numpy(indices % 1000)


def our_step(recipe, precision, gpus):
    """Return a function that takes one step as the loop does, batch and random numbers included."""
    processes, latent, train = start_processes(precision=precision, gpus=gpus), recipe.latent, recipe.train
    torch.manual_seed(0)
    model = build_model(recipe).to(processes.device).train()
    if compiling_pays(train, processes.device, TOTAL):
        compile_blocks(model)
    model.num_known = lambda generator: recipe.num_tokens - int(np.ceil(recipe.num_tokens * HIDDEN_SHARE))
    source = RandomLatents((latent.channels, latent.size, latent.size))
    tokenizer = SimpleNamespace(shape=latent, has_posterior=True, sample=lambda rows, noise: rows + 0.1 * noise)
    feed = Feed(recipe, source=source, tokenizer=tokenizer, model=model, rank=0, world_size=1)
    trained = Trained(model=model, ema=Ema(model, decay=train.ema_decay), optimizer=build_optimizer(model, train))
    forward = processes.prepared(model)
    job = Job(
        recipe=recipe,
        run=None,
        processes=processes,
        agreement=Agreement(processes),
        source=source,
        tokenizer=tokenizer,
        model=model,
        forward=forward,
        backward=build_backward(forward, model, train, processes, total=TOTAL),
        trained=trained,
        feed=feed,
        total=TOTAL,
        warmup=0,
        first_step=0,
        open_window=[],
        open_streak=0,
    )
    parameters, guard = list(model.parameters()), NonFiniteGuard("stop", processes.device, streak=0)
    batches = feed.batches(0, TOTAL)

    def step():
        loss = forward_backward(job, next(batches))
        norm = gradient_norm(parameters)
        skip = guard.withhold(loss, norm)
        apply_step(trained.optimizer, learning_rate=1e-4, norm=norm, largest_norm=train.grad_clip, skip=skip)
        trained.ema.update()
        return loss

    return step


def plain_step(recipe, precision, device):
    """Return a function that takes one step of the published algorithm, in this package's modules."""
    torch.manual_seed(0)
    model, latent, train = build_model(recipe).to(device).train(), recipe.latent, recipe.train
    groups = build_optimizer(model, train).param_groups
    groups = [{"params": group["params"], "weight_decay": group["weight_decay"]} for group in groups]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=train.betas)
    averages = [parameter.detach().clone() for parameter in model.parameters()]
    draws, batch = model.head.noise_draws, train.batch_size
    num_known = model.num_tokens - int(np.ceil(model.num_tokens * HIDDEN_SHARE))

    def loss_of(latents, labels, order):
        tokens = take(to_tokens(latents, model.patch_size), order)
        condition = model.condition(labels, torch.rand(batch, device=device) < model.label_drop)
        z = z_of_every_token(model.backbone, tokens, order, condition, num_known)
        hidden = (torch.arange(tokens.shape[1], device=device) >= num_known).expand(batch, -1)
        z, tokens, hidden = (each.flatten(0, 1).repeat(draws, *[1] * (each.ndim - 2)) for each in (z, tokens, hidden))
        return (as_published.loss(model.head, z, tokens) * hidden).sum() / hidden.sum()

    def step():
        moments = torch.randn(batch, latent.channels, latent.size, latent.size).to(device)
        labels = torch.randint(0, recipe.data.num_classes, (batch,)).to(device)
        order = torch.from_numpy(np.stack([np.random.permutation(model.num_tokens) for _ in range(batch)])).to(device)
        with autocast(precision, device):
            loss = loss_of(moments + 0.1 * torch.randn(moments.shape).to(device), labels, order)
        finish_as_published(loss, model, optimizer, averages)
        return loss

    return step


def z_of_every_token(backbone, tokens, order, condition, num_known):
    """z of known and hidden tokens alike, in the order of `order`."""
    encoded = backbone.encode(tokens[:, :num_known], order[:, :num_known], condition)
    masks = backbone.mask_token.to(encoded.dtype).expand(len(tokens), tokens.shape[1] - num_known, -1)
    x = torch.cat([backbone.decoder_embed(encoded), masks], dim=1)
    x = x + backbone.places(backbone.decoder_position, order)
    for block in backbone.decoder:
        x = block(x)
    return backbone.decoder_norm(x)[:, backbone.buffer_size :] + at_positions(backbone.z_position, order)


def autocast(precision, device, half=torch.bfloat16):
    """Half precision where asked for."""
    return torch.autocast(device.type, dtype=half) if precision == "bf16" else contextlib.nullcontext()


def finish_as_published(loss, model, optimizer, averages, scaler=None):
    """Everything behind the loss; with a scaler as in fp16."""
    assert np.isfinite(loss.item())
    if scaler is None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()
    else:
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        scaler.step(optimizer)
        scaler.update()
    optimizer.zero_grad()
    if loss.is_cuda:
        torch.cuda.synchronize()
    for average, parameter in zip(averages, model.parameters(), strict=True):
        average.detach().mul_(0.9999).add_(parameter.detach(), alpha=1 - 0.9999)


def published_step(folder, recipe, precision, device):
    """Return a function that takes one step as engine_mar.py does."""
    sys.path.insert(0, folder)
    if device.type == "cpu":
        torch.Tensor.cuda = lambda self, *args, **kwargs: self
    from models import mar

    torch.manual_seed(0)
    backbone, head = recipe.model.backbone, recipe.model.head
    model = mar.MAR(
        encoder_embed_dim=backbone.width,
        encoder_depth=backbone.encoder_depth,
        encoder_num_heads=backbone.heads,
        decoder_embed_dim=backbone.width,
        decoder_depth=backbone.decoder_depth,
        decoder_num_heads=backbone.heads,
        mlp_ratio=backbone.mlp_ratio,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        attn_dropout=backbone.dropout,
        proj_dropout=backbone.dropout,
        diffloss_d=head.depth,
        diffloss_w=head.width,
        diffusion_batch_mul=head.noise_draws,
    ).to(device)
    model.mask_ratio_generator = SimpleNamespace(rvs=lambda count: [HIDDEN_SHARE])
    model.train()
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        (kept if parameter.ndim == 1 or name.endswith(".bias") or "diffloss" in name else decayed).append(parameter)
    groups = [{"params": kept, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.02}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95))
    averages = [parameter.detach().clone() for parameter in model.parameters()]
    latent, batch = recipe.latent, recipe.train.batch_size
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    scaler = torch.amp.GradScaler() if half == torch.float16 and precision == "bf16" else None

    def step():
        moments = torch.randn(batch, latent.channels, latent.size, latent.size).to(device)
        labels = torch.randint(0, 1000, (batch,)).to(device)
        x = moments + 0.1 * torch.randn(moments.shape).to(device)
        with autocast(precision, device, half):
            loss = model(x, labels)
        finish_as_published(loss, model, optimizer, averages, scaler)
        return loss

    return step


def contestant(name, folder, options, precision):
    """Return a function that takes some steps of a batch size and gives the wall and processor seconds of one."""
    on_gpu = count_gpus(options.gpus) > 0
    device, count = torch.device("cuda" if on_gpu else "cpu"), GPU_STEPS if on_gpu else 1
    ways = {
        "ours": lambda recipe: our_step(recipe, precision, options.gpus),
        "plain": lambda recipe: plain_step(recipe, precision, device),
        "published": lambda recipe: published_step(folder, recipe, precision, device),
    }
    made = {}

    def timed_steps(batch):
        if batch not in made:
            made.clear()
            made[batch] = ways[name](recipe_of(options, batch))
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            made[batch]()
        if on_gpu:
            torch.cuda.synchronize()
        return (time.perf_counter() - wall) / count, (time.process_time() - cpu) / count

    return timed_steps


def recipe_of(options, batch):
    """The recipe at a batch size."""
    sizes = [f"train.batch_size={batch}", "train.micro_batch_size=null"]
    return read_recipe(options.recipe, [*sizes, *options.overrides])


def main() -> None:
    """Print the medians and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--recipe", default="recipes/mar_b.yaml")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[4])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--gpus", default="auto")
    options = parser.parse_intermixed_args()
    folder, results = os.environ.get("MARCLI_PUBLISHED_MAR"), {}
    names = ["ours", "plain", "published"] if folder else ["ours", "plain"]
    for precision in options.precisions.split(","):
        with contextlib.ExitStack() as stack:
            facts = (folder, options, precision)
            contestants = {name: stack.enter_context(started(contestant, name, *facts)) for name in names}
            for batch in options.batch_size:
                key = f"batch {batch}, {precision}"
                results[key] = measured(contestants, batch, options.repeats, key)
    print(json.dumps({"threads": torch.get_num_threads(), **results}))


def measured(contestants, batch, repeats, title):
    """Let the contestants take turns; print and return seconds, and how often our step fits into the others'."""
    times, results = {name: [] for name in contestants}, {}
    for repeat in range(repeats + 2):
        for name, steps in contestants.items():
            spent = steps(batch)
            if repeat > 1:  # the first two warm up
                times[name].append(spent)
    for name, spent in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*spent, strict=True))
        results[name] = {"seconds": wall, "processor_seconds": cpu}
        print(f"{title}: {name:10} {wall:8.4f} s wall  {cpu:8.4f} s processor", flush=True)
    for name in [name for name in times if name != "ours"]:
        ratios = [theirs[0] / ours[0] for theirs, ours in zip(times[name], times["ours"], strict=True)]
        results[f"ours over {name}"] = statistics.median(ratios)
        print(f"{title}: ours is {statistics.median(ratios):.2f} times as fast as {name}", flush=True)
    return results


if __name__ == "__main__":
    main()
