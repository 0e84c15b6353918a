"""Everything the published code computes on known weights, from tokens to whole generations, and its gradients.

Tolerance: 1e-5 of an array's largest value in float32; per row for single reverse steps, vb and the loss.
"""

import dataclasses

import pytest
import torch
from torch import Tensor

from marcli.model.autoregressive import AutoregressiveModel
from marcli.model.grid import to_latents, to_tokens
from marcli.model.layers.embed import take
from marcli.model.process.gaussian import cosine_betas, diffuse, full_process, reverse, reverse_sample
from marcli.model.process.losses import diffusion_loss
from marcli.pretrained.official_mar import our_name
from marcli.sampling.reveal import reveal
from marcli.sampling.schedule import RevealStep, reveal_schedule
from marcli.sampling.tape import Tape
from tests.model.tiny import head_settings
from tests.reference.pairs import HERE, Pair, build, pair_paths, read_pair

TOLERANCE = 1e-5


def close(ours: Tensor, theirs: Tensor, what: str, *, per_row: bool = False) -> None:
    """Assert the tolerance, relative to the largest value of the array or of each row."""
    assert ours.shape == theirs.shape, f"{what}: shape {tuple(ours.shape)}, not {tuple(theirs.shape)}"
    ours, theirs = ours.detach().double(), theirs.double()
    rows = (len(theirs), -1) if per_row and theirs.ndim else (1, -1)
    error, size = (ours - theirs).abs().reshape(rows).amax(1), theirs.abs().reshape(rows).amax(1)
    worst = (error / size.clamp(min=1e-12)).max().item()
    assert worst <= TOLERANCE, f"{what}: off by {worst:.1e} of the largest value"


def check_tokens_and_z(pair: Pair, model: AutoregressiveModel, order: Tensor) -> None:
    a, patch = pair.arrays, pair.facts["config"]["patch_size"]
    assert torch.equal(order.sort(1).values, torch.arange(pair.num_tokens).expand_as(order)), "orders"
    hidden = torch.zeros_like(a["mask"]).scatter(1, order[:, pair.num_known :], 1.0)
    close(hidden, a["mask"], "mask")
    tokens = to_tokens(a["latents"], patch)
    close(tokens, a["tokens"], "tokens")
    close(to_latents(tokens, patch), a["latents"], "latents")
    by_position = order[:, : pair.num_known].sort(1).values
    condition = model.condition(a["labels"])
    close(model.backbone.encode(take(tokens, by_position), by_position, condition), a["encoder_out"], "encoder_out")
    # The decoder's z of known tokens is never used; the published code computes it, so all wanted ones are compared.
    z = model.backbone(take(tokens, order), order, condition, pair.num_known)
    close(z, take(a["z"], order)[:, pair.num_known :], "z")


def check_loss(pair: Pair, model: AutoregressiveModel, order: Tensor) -> None:
    a, process, known = pair.arrays, full_process("cosine"), pair.num_known
    close(cosine_betas(), a["betas"], "betas")
    rows = a["tokens"].flatten(0, 1)
    x = diffuse(process, rows, a["t"], a["noise"])
    close(x, a["x_t"], "x_t")
    head_out = model.head.denoiser(x, a["t"], a["z"].flatten(0, 1))
    close(head_out, a["head_out"], "head_out")
    mse, vb = diffusion_loss(process, rows, x, a["t"], a["noise"], head_out)
    close(mse, a["mse"], "mse", per_row=True)
    close(vb, a["vb"], "vb", per_row=True)
    close(mse + vb, a["loss_per_token"], "loss_per_token", per_row=True)
    batch = len(order)
    draws = {
        "order": order,
        "dropped": torch.zeros(batch, dtype=torch.bool),
        "t": a["t"].view(batch, -1).gather(1, order)[:, known:, None],
        "noise": take(a["noise"].view(batch, pair.num_tokens, -1), order)[:, known:, None],
    }
    loss = model(a["latents"], a["labels"], draws, known).mean()
    close(loss, a["loss"], "loss")
    model.zero_grad()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert {our_name(name) for name in pair.facts["grad_norm"]} == set(gradients)
    for name, norm in pair.facts["grad_norm"].items():
        gradient = gradients[our_name(name)]
        ours = torch.zeros(()) if gradient is None else gradient.norm()
        assert ours.item() == pytest.approx(norm, rel=TOLERANCE, abs=1e-12), f"grad_norm of {name}"


def check_reverse_steps(pair: Pair, model: AutoregressiveModel) -> None:
    a = pair.arrays
    process = full_process("cosine").respaced(int(pair.facts["config"]["num_sampling_steps"]), 999)
    assert process.timesteps == a["gen_timesteps"].tolist(), "gen_timesteps"
    close(process.betas, a["gen_betas"], "gen_betas")
    steps = {step.index: step for step in process.reverse_steps()}
    z, temperature = a["z"].flatten(0, 1), a["reverse_temperature"].item()
    for row, index in enumerate(a["reverse_index"].tolist()):
        step, x = steps[index], a["reverse_x"][row : row + 1]
        eps, variance = model.head.denoiser(x, torch.tensor([step.timestep]), z[row : row + 1]).chunk(2, dim=-1)
        p = reverse(step, x, eps, variance, None)
        noise = a["reverse_noise"][row : row + 1]
        ours = {
            "reverse_mean": p.mean,
            "reverse_log_variance": p.log_variance,
            "reverse_x0": p.x0,
            "reverse_sample": reverse_sample(step, x, eps, variance, noise, temperature, None),
        }
        for name, value in ours.items():
            close(value, a[name][row : row + 1], name, per_row=True)


def tape_of(pair: Pair, call: int, order: Tensor, schedule: list[RevealStep]) -> Tape:
    """The noise of a published generation call, sorted from its rows (by AR step, image, position) to our tape."""
    noise = pair.arrays[f"sample{call}_noise"]  # [1 + steps, rows, dim]
    batch, start = len(order), 0
    tape = noise.new_zeros(batch, pair.num_tokens, len(noise), noise.shape[-1])
    for step in schedule:
        rows = noise[:, start : start + batch * step.count]
        rows = rows.view(len(noise), batch, step.count, -1).permute(1, 2, 0, 3)
        ranks = order[:, step.known : step.known + step.count].argsort(1)
        for image in range(batch):
            tape[image, step.known + ranks[image]] = rows[image]
        start += batch * step.count
    return Tape(order, tape)


@torch.inference_mode()
def check_generation(pair: Pair, model: AutoregressiveModel, order: Tensor, number: int) -> None:
    call, a = pair.facts["samples"][number], pair.arrays
    schedule = reveal_schedule(
        num_tokens=pair.num_tokens,
        num_steps=call["num_iter"],
        cfg=call["cfg"],
        cfg_schedule=call.get("cfg_schedule", "linear"),
    )
    rows = [step.count * len(order) for step in schedule]
    assert rows == a[f"sample{number}_rows_per_step"].tolist(), f"sample{number}_rows_per_step"
    settings = head_settings(
        temperature=call["temperature"],
        diffusion_steps=int(pair.facts["config"]["num_sampling_steps"]),
        max_timestep=call.get("max_timestep", 999),
    )
    process = model.head.process.respaced(settings.diffusion_steps, settings.max_timestep)
    assert process.timesteps == a[f"sample{number}_timesteps"].tolist(), f"sample{number}_timesteps"
    null = model.null_class.expand(len(order), -1)
    latents = reveal(
        model,
        condition=null if call.get("unconditional") else model.condition(a["labels"]),
        null=null if call["cfg"] != 1.0 else None,
        tape=tape_of(pair, number, order, schedule),
        schedule=schedule,
        settings=settings,
        kv_cache=False,
        on_step=None,
    )
    close(latents, a[f"sample{number}_latents"], f"sample{number}_latents")


def check(pair: Pair) -> None:
    """Assert that every array and gradient of the pair is matched."""
    model, order = build(pair), pair.arrays["orders"].flip(1)
    check_tokens_and_z(pair, model, order)
    check_loss(pair, model, order)
    check_reverse_steps(pair, model)
    for number in range(len(pair.facts["samples"])):
        check_generation(pair, model, order, number)


@pytest.mark.parametrize("path", pair_paths(), ids=lambda path: f"parity-{path.stem}")
def test_parity(path):
    check(read_pair(path))


SMALLEST = read_pair(HERE / "mar_tiny_patch2.json")


@pytest.mark.parametrize("name", sorted(SMALLEST.arrays), ids=lambda name: f"disturbed-{name}")
def test_a_disturbed_array_is_noticed(name):
    array = SMALLEST.arrays[name]
    array = array * 1.001 + 0.01 if array.is_floating_point() else (array + 1) % 10
    pair = dataclasses.replace(SMALLEST, arrays={**SMALLEST.arrays, name: array})
    with pytest.raises(AssertionError):
        check(pair)


def test_a_disturbed_gradient_is_noticed():
    name = "class_emb.weight"
    norms = {**SMALLEST.facts["grad_norm"], name: SMALLEST.facts["grad_norm"][name] * 1.001}
    with pytest.raises(AssertionError, match=name):
        check(dataclasses.replace(SMALLEST, facts={**SMALLEST.facts, "grad_norm": norms}))
