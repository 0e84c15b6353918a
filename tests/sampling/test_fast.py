"""The fast engine computes the plain engine's pictures, and never makes the host wait for a device."""

import copy
import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from marcli.errors import UsageError
from marcli.sampling.engine import denoise
from marcli.sampling.engine.build import build_engine
from marcli.sampling.engine.fast import FastEngine, fast_twin
from marcli.sampling.engine.linear import MOST_ROWS_WITHOUT_AVX512, PackedLinear, onednn_pays
from marcli.sampling.engine.plain import PlainEngine
from tests.model.tiny import COMBINATIONS, model, recipe, system
from tests.reference.pairs import HERE, build, read_pair
from tests.test_parity import check_generation

TOLERANCE = 1e-5
REVEALING = [combination for combination in COMBINATIONS if combination[0] != "dit"]
LABELS = torch.tensor([1, 7, 4])


def latents(engine, seed=0):
    tape = engine.draw_tape(seed=seed, indices=range(len(LABELS)))
    return engine.latents(labels=LABELS, tape=tape, on_step=None)


def assert_same(fast, plain, tolerance=TOLERANCE):
    assert fast.shape == plain.shape and fast.dtype == plain.dtype
    assert (fast.double() - plain.double()).abs().max() <= tolerance * plain.double().abs().max()


@pytest.mark.parametrize("guidance", [{}, {"cfg": 3.0}, {"cfg": 2.0, "cfg_schedule": "constant"}], ids=str)
@pytest.mark.parametrize("combination", REVEALING, ids="-".join)
def test_same_pictures_for_every_backbone_head_and_guidance(combination, guidance):
    of = recipe(*combination, temperature=0.9, **guidance)
    whole = model(of)
    assert_same(latents(FastEngine(whole, of)), latents(PlainEngine(whole, of)))


@pytest.mark.parametrize("name", ["mar_tiny_patch1", "mar_tiny_patch2"])
def test_same_pictures_as_the_published_code(name):
    pair = read_pair(HERE / f"{name}.json")
    twin = fast_twin(build(pair))
    for number in range(len(pair.facts["samples"])):
        check_generation(pair, twin, pair.arrays["orders"].flip(1), number)


def test_modulations_in_pieces_give_the_same_pictures(monkeypatch):
    of = recipe("masked", "random", "diffusion", cfg=3.0, clip_denoised=1.0)
    whole = model(of)
    expected = latents(PlainEngine(whole, of))
    for cap in (1, 10_000):
        monkeypatch.setattr(denoise, "MODULATION_BYTES", cap)
        assert_same(latents(FastEngine(whole, of)), expected)


def test_modulations_are_gone_before_there_are_others(monkeypatch):
    of = recipe("masked", "random", "diffusion", cfg=3.0)
    engine, made = FastEngine(model(of), of), []
    modulate = engine.model.head.modulate.forward

    def watched(*arguments):
        assert all(each() is None for each in made)
        modulations = modulate(*arguments)
        made.extend(weakref.ref(each) for each in modulations)
        return modulations

    monkeypatch.setattr(denoise, "MODULATION_BYTES", 1)
    monkeypatch.setattr(engine.model.head.modulate, "forward", watched)
    latents(engine)
    assert len(made) > len(engine.schedule) * len(engine.model.head.modulate.layers)


def test_the_plain_model_is_left_as_it_was():
    of = recipe("masked", "random", "diffusion", cfg=3.0)
    whole = model(of)
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    expected = latents(PlainEngine(whole, of))
    latents(FastEngine(whole, of))
    assert torch.equal(latents(PlainEngine(whole, of)), expected)
    assert whole.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize("backbone", ["masked", "causal"])
def test_bf16_stays_as_close_to_fp32_as_the_plain_bf16(backbone):
    of = recipe(backbone, None, "diffusion", cfg=2.0)
    exact = latents(PlainEngine(model(of), of))
    plain = (latents(PlainEngine(model(of).bfloat16(), of)) - exact).norm()
    fast = (latents(FastEngine(model(of).bfloat16(), of)) - exact).norm()
    assert 0 < fast <= 1.5 * plain
    assert fast <= 0.1 * exact.norm()


@pytest.mark.parametrize("combination", COMBINATIONS, ids=str)
@pytest.mark.parametrize("name", ["plain", "auto"])
def test_converting_part_by_part_is_converting_the_model(name, combination):
    of = recipe(*combination)
    whole = system(of)
    given = build_engine(whole, name=name, device=torch.device("cpu"), precision="bf16")
    assert all(value.dtype == torch.float32 for value in whole.model.state_dict().values())
    converted = replace(whole, model=copy.deepcopy(whole.model).bfloat16())
    expected = build_engine(converted, name=name, device=torch.device("cpu"), precision="bf16")
    assert torch.equal(latents(given), latents(expected))


@pytest.mark.parametrize("has_avx512", [True, False])
@pytest.mark.parametrize("rows", [3, MOST_ROWS_WITHOUT_AVX512 + 1])
@pytest.mark.parametrize("width", [48, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["none", "gelu", "swish"])
def test_packed_linear(activation, dtype, width, rows, has_avx512, monkeypatch):
    monkeypatch.setattr("marcli.sampling.engine.linear.HAS_AVX512", has_avx512)
    weight, bias, x = (torch.randn(*shape).to(dtype) for shape in ((512, width), (512,), (2, rows, width)))
    weight /= width**0.5
    packed = PackedLinear(weight, bias, activation=activation, pack=True)
    assert (packed.packed is not None) == onednn_pays(weight)
    assert (packed.weight is None) == (dtype == torch.bfloat16 and onednn_pays(weight))
    plain = PackedLinear(weight.double(), bias.double(), activation=activation, pack=False)
    assert plain.packed is None
    expected = plain(x.double())
    unpacked = PackedLinear(weight, bias, activation=activation, pack=False)
    assert unpacked.packed is None and unpacked.fused == (dtype == torch.float32 and has_avx512 and onednn_pays(weight))
    for linear in (packed, unpacked):
        error = (linear(x).double() - expected).abs().max() / expected.abs().max()
        assert error < (2e-6 if dtype == torch.float32 else 2e-2)


def test_small_weights_are_not_packed_in_fp32():
    assert not onednn_pays(torch.randn(512, 511))
    assert onednn_pays(torch.randn(512, 512)) == torch.backends.mkldnn.is_available()


class HostWaits(TorchDispatchMode):
    """Names the operations that would make the host wait for a device."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero", "item")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket._qualified_op_name.split("::")[1]
        moves = name in ("_to_copy", "copy_", "to") and (kwargs or {}).get("device") is not None
        boolean = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in self.WAITING or name.startswith("_unique") or moves or boolean:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("engine", [PlainEngine, FastEngine])
@pytest.mark.parametrize("combination", REVEALING, ids="-".join)
def test_the_host_never_waits(combination, engine):
    of = recipe(*combination, cfg=3.0)
    built = engine(model(of), of)
    tape = built.draw_tape(seed=0, indices=range(len(LABELS)))
    with HostWaits() as waits:
        built.latents(labels=LABELS, tape=tape, on_step=None)
    assert waits.found == []


def test_waits_are_noticed():
    x = torch.arange(4.0)
    with HostWaits() as waits:
        x.sum().item()
        x[x > 1]
        x.nonzero()
    assert len(waits.found) == 3


def test_auto_is_the_fast_engine_and_plain_stays_plain():
    of = recipe("masked", "random", "diffusion")
    built = {
        name: build_engine(system(of), name=name, device=torch.device("cpu"), precision="fp32")
        for name in ("auto", "plain", "fast")
    }
    assert {name: engine.name for name, engine in built.items()} == {"auto": "fast", "plain": "plain", "fast": "fast"}


def test_fast_is_refused_by_name_where_there_is_none():
    of = recipe("dit", None, None)
    assert build_engine(system(of), name="auto", device=torch.device("cpu"), precision="fp32").name == "plain"
    with pytest.raises(UsageError, match="--engine fast"):
        build_engine(system(of), name="fast", device=torch.device("cpu"), precision="fp32")
