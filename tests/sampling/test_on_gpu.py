"""Generation on a GPU, with recordings and compiled parts: uv run pytest -n0 -m gpu"""

import logging

import pytest
import torch

from marcli.sampling.engine.build import build_engine
from marcli.sampling.generate import Maker
from marcli.tokenizer.build import build_tokenizer
from tests.model.tiny import COMBINATIONS, recipe, system
from tests.sampling.alone import run_alone
from tests.sampling.test_recorded import ANNEALED, LAZY

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")]

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
LABELS = [1, 7, 4]
SETTINGS = [
    *((combination, {}) for combination in COMBINATIONS),
    *((combination, ANNEALED) for combination in COMBINATIONS if combination[2] == "diffusion"),
    (("masked", "random", "diffusion"), LAZY),
]
COMPILED = [("masked", "random", "diffusion"), ("causal", "raster", "diffusion"), ("dit", None, None)]

KERNELS = """
import copy
import torch
from marcli.model.head.denoiser import DenoisingMLP
from marcli.sampling.engine.denoise import Body
from marcli.sampling.engine.few_rows import FewRows

torch.manual_seed(0)
for width in (1024, 1280, 1536):
    net = DenoisingMLP(token_dim=16, z_dim=8, width=width, depth=3).requires_grad_(False)
    for parameter in net.parameters():
        parameter.copy_(torch.randn(parameter.shape) * (0.3 / width**0.5 if parameter.ndim > 1 else 0.3))
    net = net.to("cuda", torch.bfloat16)
    body, exact = Body(net), Body(copy.deepcopy(net).double())
    for halves, rows in ((2, 1), (2, 7), (1, 16)):
        x = torch.randn(rows, 16, device="cuda", dtype=torch.bfloat16)
        shapes = [(halves, rows, width * parts) for parts in (3, 3, 3, 2)]
        modulations = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes]
        assert FewRows(body).takes(modulations)
        expected = exact(x.double(), [each.double() for each in modulations])
        both = FewRows(body)(x, modulations), body(x, modulations)
        print(*(float((made.double() - expected).norm() / expected.norm()) for made in both))
"""


def generated(engine, seed=0, labels=LABELS):
    """Latents on the CPU."""
    tape = engine.draw_tape(seed=seed, indices=range(len(labels))).to(engine.device)
    return engine.latents(labels=torch.tensor(labels, device=engine.device), tape=tape, on_step=None).cpu()


def engine_of(of, name, device, **more):
    return build_engine(system(of), name=name, device=device, **{"precision": "fp32", **more})


def alike(ours, theirs):
    return (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize(
    ("combination", "settings", "compiled"),
    [*((*each, False) for each in SETTINGS), *((each, {}, True) for each in COMPILED)],
    ids=str,
)
def test_the_plain_pictures_and_no_wait_for_the_host(combination, settings, compiled, caplog):
    of = recipe(*combination, cfg=3.0, **settings)
    plain, fast = engine_of(of, "plain", GPU), engine_of(of, "auto", GPU, compiled=compiled)
    assert fast.name == "fast"
    with caplog.at_level(logging.WARNING, logger="marcli"):
        for seed in (0, 1, 0):  # recorded in the second batch, replayed in the third
            assert alike(generated(fast, seed), generated(plain, seed))
    assert not caplog.records  # which would tell of what could not be recorded or compiled
    tape = fast.draw_tape(seed=2, indices=range(3)).to(GPU)
    labels = torch.tensor(LABELS, device=GPU)
    torch.cuda.set_sync_debug_mode("error")
    try:
        fast.latents(labels=labels, tape=tape, on_step=None)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("combination", COMBINATIONS, ids=str)
def test_a_gpu_makes_the_pictures_of_a_cpu(combination):
    of = recipe(*combination, cfg=3.0)
    here, there = (generated(engine_of(of, "plain", device)) for device in (CPU, GPU))
    assert (there - here).abs().max() <= 1e-4 * here.abs().max()


def test_recordings_serve_batches_of_any_size_in_any_order():
    of = recipe("masked", "random", "diffusion", cfg=3.0)
    plain, fast = engine_of(of, "plain", GPU), engine_of(of, "fast", GPU)
    for labels in ([1], LABELS, [1], LABELS, [5, 5], [2], [9, 0, 3], [8, 6]):
        assert alike(generated(fast, labels=labels), generated(plain, labels=labels))


def test_bf16_is_near_fp32():
    of = recipe("masked", "random", "diffusion", cfg=3.0)
    exact = generated(engine_of(of, "fast", GPU))
    rounded = generated(engine_of(of, "fast", GPU, precision="bf16"))
    assert 0 < (rounded - exact).abs().max() <= 0.1 * exact.abs().max()


def test_kernels_for_few_rows():
    pytest.importorskip("triton", reason="this torch comes without Triton")
    made = run_alone(KERNELS)
    assert len(made) == 9
    for few, plain in made:
        assert float(few) <= float(plain) < 0.01


def test_a_batch_that_does_not_fit_is_split(caplog):
    of = recipe("masked", "random", "diffusion", cfg=3.0)
    engine, labels = engine_of(of, "fast", GPU), torch.arange(4096, device=GPU) % 10
    maker = Maker(engine, build_tokenizer(of, folder=None).to(GPU), None)
    whole = maker.images(labels, engine.draw_tape(seed=0, indices=range(4096)).to(GPU))
    maker.engine = engine = engine_of(of, "fast", GPU)
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved() + 64 * 2**20
    torch.cuda.set_per_process_memory_fraction(held / torch.cuda.get_device_properties(0).total_memory)
    try:
        with caplog.at_level(logging.WARNING, logger="marcli"):
            parts = maker.images(labels, engine.draw_tape(seed=0, indices=range(4096)).to(GPU))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "do not fit" in caplog.text
    assert (parts.int() - whole.int()).abs().max() <= 1
