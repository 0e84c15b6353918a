"""What one step is made of: no waiting for the device, bf16 beside fp32, compiled blocks."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from marcli.runtime.accelerator import start_processes
from marcli.runtime.rundir import RunDir
from marcli.training.blocks import compilable, compiling_pays
from marcli.training.loop import forward_backward
from marcli.training.metrics_log import Window
from marcli.training.nonfinite import NonFiniteGuard
from marcli.training.optim import apply_step, gradient_norm
from marcli.training.setup import prepare

# Operations whose result, or the shape of whose result, the host has to wait for.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "unique2", "equal", "is_nonzero"}


class NoWaiting(TorchDispatchMode):
    """Fails on operations that would make the host wait for a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name.lstrip("_") not in {op.lstrip("_") for op in WAITING}, f"{name} waits for the device"
        if name == "index":
            assert not any(i is not None and i.dtype == torch.bool for i in args[1]), "a mask as an index waits"
        return func(*args, **(kwargs or {}))


def take_step(job, batch, window, guard=None):
    guard = guard or NonFiniteGuard("stop", job.processes.device, streak=0)
    loss = forward_backward(job, batch)
    norm = gradient_norm(list(job.model.parameters()))
    skip = guard.withhold(loss, norm)
    apply_step(job.trained.optimizer, learning_rate=1e-3, norm=norm, largest_norm=3.0, skip=skip)
    job.trained.ema.update()
    window.add(batch.step + 1, loss, norm, guard.streak)
    return loss


def heard(model):
    """Fill what starts at zero, so that the loss depends on z."""
    denoiser, generator = model.head.denoiser, torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in (denoiser.out, denoiser.final_modulation, *(block.modulation for block in denoiser.blocks)):
            layer.weight.copy_(0.3 * torch.randn(layer.weight.shape, generator=generator))


def test_the_detector_detects():
    with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
        torch.ones(()).item()


def test_a_step_never_waits_for_the_device(recipe, start, tmp_path):
    job, window = start(recipe(), tmp_path), Window([])
    take_step(job, job.feed.batch(0), window)  # tables are made
    batch = job.feed.batch(1)
    with NoWaiting():
        take_step(job, batch, window)
    assert [record.step for record in window.fetch()] == [1, 2]


def test_bf16_is_near_fp32_and_keeps_fp32_weights(recipe, tmp_path):
    losses = {}
    for precision in ("fp32", "bf16"):
        made = recipe(model__backbone__dropout=0.0)
        processes = start_processes(precision=precision, gpus="0")
        job = prepare(made, RunDir(tmp_path / precision), processes, lambda line: None)
        heard(job.model)
        losses[precision] = take_step(job, job.feed.batch(0), Window([])).item()
        assert {parameter.dtype for parameter in job.model.parameters()} == {torch.float32}
        assert {average.dtype for average in job.trained.ema.averages} == {torch.float32}
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)


def test_long_runs_on_a_gpu_are_compiled_unless_the_recipe_says_otherwise(recipe):
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    default = recipe().train
    assert compiling_pays(default, gpu, 10_000)
    assert not compiling_pays(default, gpu, 9_999) and not compiling_pays(default, cpu, 10_000)
    assert compiling_pays(recipe(compile=True).train, cpu, 1)
    assert not compiling_pays(recipe(compile=False).train, gpu, 10**6)


def test_a_denoising_mlp_is_compiled_as_a_whole(recipe, start, tmp_path):
    model = start(recipe(), tmp_path).model
    assert list(compilable(model)) == [*model.backbone.encoder, *model.backbone.decoder, model.head.denoiser]


@pytest.mark.slow
@pytest.mark.parametrize("recomputed", [False, True])
def test_compiled_blocks_compute_the_same(recipe, start, recomputed, tmp_path):
    losses = []
    for compiled in (False, True):
        job = start(recipe(activation_checkpointing=recomputed, compile=compiled), tmp_path / str(compiled))
        heard(job.model)
        torch.manual_seed(0)  # of dropout: the same numbers are dropped
        losses.append([take_step(job, job.feed.batch(step), Window([])).item() for step in range(3)])
        assert not any("_orig_mod" in name for name in job.model.state_dict())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


VARIANTS = """
import torch
from marcli.training.blocks import compile_blocks
from tests.model import tiny

torch._dynamo.config.fail_on_recompile_limit_hit = True
tiny.BACKBONES["masked"] |= {"encoder_depth": 6, "decoder_depth": 6}  # more blocks than dynamo would recompile for
of = tiny.recipe("masked", "random", "diffusion")
model, latents = tiny.model(of).train(), tiny.latents(of, 4)
compile_blocks(model)
for num_known in (3, 5, 9, 0, 12, 1, 2):
    draws = tiny.draws(model, 4, num_known)
    loss = model(latents, torch.tensor([1, 2, 3, 4]), draws, num_known)
    loss.mean().backward()
print(torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""


@pytest.mark.slow
def test_few_compilations_serve_every_number_of_known_tokens():
    """In a process without the tests' type checks, which break compiled code into pieces."""
    command = [sys.executable, "-c", VARIANTS]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 2 * 3, "encoder, decoder and head: one of the first length, one of all others"
