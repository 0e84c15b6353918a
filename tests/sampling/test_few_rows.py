"""The kernels for few rows, without a GPU: Triton interprets them on a CPU, and compiles them for GPUs elsewhere."""

import logging

import pytest
import torch

from marcli.sampling.engine.compiled import FastOrPlain, FewRowsOrMore, add_kernels
from marcli.sampling.engine.denoise import FastDiffusionHead
from tests.model.tiny import model, recipe
from tests.sampling.alone import run_alone

pytest.importorskip("triton", reason="this torch comes without Triton")

INTERPRETED = """
import copy
import torch
import torch.nn.functional as F
from marcli.model.head.denoiser import DenoisingMLP
from marcli.sampling.engine import linear
from marcli.sampling.engine.denoise import Body
from marcli.sampling.engine.few_rows import FewRows

linear.onednn_pays = lambda weight: False  # as on a GPU

def exact(net, x, modulations):
    x = net.token_embed(x)
    for block, modulation in zip(net.blocks, modulations):
        shift, scale, gate = modulation.chunk(3, dim=-1)
        x = x + gate * block.fc2(F.silu(block.fc1(block.norm(x) * scale + shift)))
    shift, scale = modulations[-1].chunk(2, dim=-1)
    return net.out(net.final_norm(x) * scale + shift)

torch.manual_seed(0)
for width, halves, rows in ((64, 2, 3), (128, 1, 1), (320, 2, 8)):
    net = DenoisingMLP(token_dim=10, z_dim=8, width=width, depth=2).requires_grad_(False)
    for parameter in net.parameters():
        parameter.copy_(torch.randn(parameter.shape) * (0.3 / width**0.5 if parameter.ndim > 1 else 0.3))
    body = Body(net.half())  # the interpreter knows no bf16
    x = torch.randn(rows, 10).half()
    modulations = [torch.randn(halves, rows, width * parts).half() for parts in (3, 3, 2)]
    expected = exact(copy.deepcopy(net).double(), x.double(), [modulation.double() for modulation in modulations])
    print(float((FewRows(body)(x, modulations).double() - expected).norm() / expected.norm()))
"""

COMPILED = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from marcli.sampling.engine import few_rows

NUMBERS = {"rows": "i32", "x_rows": "i32", "num_features": "i32", "eps": "fp32"}
for function, settings in (
    (few_rows.modulated_product, dict(width=1024, parts=3, affine=True, swish=True)),
    (few_rows.gated_sum, dict(width=1536)),
):
    settings |= dict(row_tile=16, tile=few_rows.TILE, chunk=512)
    names = function.arg_names
    signature = {name: "constexpr" if name in settings else NUMBERS.get(name, "*bf16") for name in names}
    pointers = {(names.index(name),): [["tt.divisibility", 16]] for name in names if signature[name] == "*bf16"}
    constants = {(names.index(name),): value for name, value in settings.items()}
    source = ASTSource(function, signature, constants, pointers)
    made = compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options={"num_warps": few_rows.NUM_WARPS})
    print(made.metadata.shared, made.asm["ptx"].count("mma.sync"), made.asm["ptx"].count("ld.global.v4") > 0)
"""


def test_the_kernels_compute_the_body():
    far = run_alone(INTERPRETED, TRITON_INTERPRET="1")
    assert len(far) == 3
    assert all(float(error) < 1e-3 for (error,) in far)


@pytest.mark.parametrize("generation", ["80", "90"])
def test_the_kernels_compile_for_gpus(generation, tmp_path):
    made = run_alone(COMPILED, generation, TRITON_CACHE_DIR=str(tmp_path))
    for shared, products, wide_loads in made:
        assert int(shared) <= 48 * 1024
        assert int(products) > 0 and wide_loads == "True"


def body_of():
    return FastDiffusionHead(model(recipe("masked", "random", "diffusion")).head).body


def test_only_few_rows_of_a_known_width_in_bf16_are_taken():
    body = body_of()
    for width, halves, rows, dtype, taken in (
        (64, 2, 8, torch.bfloat16, True),
        (1280, 1, 16, torch.bfloat16, True),
        (64, 2, 9, torch.bfloat16, False),
        (64, 2, 8, torch.float32, False),
        (96, 1, 1, torch.bfloat16, False),
    ):
        body.width = width
        modulations = [torch.zeros(halves, rows, 3 * width, dtype=dtype)]
        assert FewRowsOrMore(body).takes(modulations) == taken


def test_kernels_that_fail_leave_what_was_there_and_one_line(caplog, monkeypatch):
    monkeypatch.setattr(FastOrPlain, "told", set())
    body = body_of()
    x, modulations = torch.randn(3, 4), [torch.randn(2, 3, 32 * parts) for parts in (3, 3, 2)]
    expected = body(x, modulations)
    add_kernels(body)
    body.forward.takes = lambda modulations: True  # with no GPU to run on
    with caplog.at_level(logging.WARNING, logger="marcli"):
        for _ in range(2):
            assert torch.equal(body(x, modulations), expected)
    assert [record.message.split(":")[0] for record in caplog.records] == ["going on without kernels for few rows"]
