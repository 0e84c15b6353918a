"""What runs on a GPU, on one that is not there: fake tensors have a device, a shape and a dtype, but no values.

A tensor on the wrong device raises there as on a GPU, and so does every host wait, for there is nothing to read.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from marcli.model.process.gaussian import device_tables
from marcli.sampling.engine import dit, fast
from marcli.sampling.engine.build import build_engine
from marcli.sampling.engine.convert import converter
from tests.model.tiny import COMBINATIONS, draws, latents, model, recipe, system

GPU = torch.device("cuda:0")
LABELS = [1, 7, 4]
APPROXIMATIONS = {
    "annealed": {
        "final_diffusion_steps": 2,
        "guidance_from": 1.5,
        "guidance_refresh": 2,
        "head_guidance_refresh": 2,
    },
    "ode": {"solver": "dpm++2m", "order": "checkerboard"},
    "features": {"feature_refresh": 2, "guidance_refresh": 2},
}
SETTINGS = [
    *((combination, {}) for combination in COMBINATIONS),
    *((("masked", "random", "diffusion"), switches) for switches in APPROXIMATIONS.values()),
]


@pytest.fixture(autouse=True)
def no_fakes_left():
    """Tables are kept per device, and these must not meet a real one."""
    yield
    device_tables.cache_clear()


@pytest.fixture
def no_graphs(monkeypatch):
    """CUDA graphs do not work on fake tensors."""
    for engines in (fast, dit):
        monkeypatch.setattr(engines, "CudaGraphs", lambda: lambda function: (lambda: None, function()))


def generated(engine, device):
    tape = engine.draw_tape(seed=0, indices=range(len(LABELS))).to(device)
    return engine.latents(labels=torch.tensor(LABELS, device=device), tape=tape, on_step=None)


@pytest.mark.parametrize(("combination", "switches"), SETTINGS, ids=str)
@pytest.mark.parametrize("name", ["plain", "auto"])
def test_generation_stays_on_the_gpu_and_never_waits(no_graphs, combination, switches, name):
    steps = {} if combination[0] == "dit" else {"steps": 3 if combination[0] == "masked" else 16}
    of = recipe(*combination, cfg=3.0, diffusion_steps=3, approximate=switches, **steps)
    whole = system(of)
    here = generated(build_engine(whole, name=name, device=torch.device("cpu"), precision="fp32"), torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        engine = build_engine(whole, name=name, device=GPU, precision="bf16")
        made = generated(engine, GPU)
    assert engine.name == ("plain" if name == "plain" else "fast")
    assert made.device == GPU and made.shape == here.shape and made.dtype == here.dtype


@pytest.mark.parametrize("combination", COMBINATIONS, ids=str)
def test_the_loss_stays_on_the_gpu_and_never_waits(combination):
    of = recipe(*combination)
    whole = model(of)
    given = latents(of, 4), torch.tensor([*LABELS, 0]), draws(whole, 4, 0)
    here = whole(*given, 0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        there = converter(GPU, torch.float32)(whole)
        moved = given[0].to(GPU), given[1].to(GPU), {key: value.to(GPU) for key, value in given[2].items()}
        losses = there(*moved, 0)
    assert losses.device == GPU and losses.shape == here.shape


def test_a_tensor_on_the_wrong_device_and_a_host_wait_are_seen():
    with FakeTensorMode():
        x = torch.ones(3, device=GPU)
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        with pytest.raises(Exception, match="local_scalar_dense"):
            x.sum().item()
