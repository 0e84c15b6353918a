"""Clocks and memory: exclusive times, and nothing left behind."""

import time

import pytest
import torch
from torch import nn

from marcli.bench.clock import PartClock, bytes_held, peak_memory, timed
from marcli.bench.roofline import measure_machine
from marcli.bench.stand_in import stand_in_system
from marcli.recipe.reader import read_recipe
from marcli.runtime.memory import release_freed_memory
from marcli.sampling.engine.build import build_engine
from marcli.sampling.engine.linear import onednn_pays

CPU = torch.device("cpu")


class Inner(nn.Module):
    def work(self):
        time.sleep(0.03)
        return "done"


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def work(self):
        time.sleep(0.02)
        return self.inner.work()


def test_part_clock_gives_nested_time_to_the_inner_part_only():
    outer = Outer()
    with PartClock({"outer": [(outer, "work")], "inner": [(outer.inner, "work")]}, CPU) as clock:
        total = timed(outer.work, CPU)
    assert clock.seconds["inner"] > clock.seconds["outer"] > 0.015
    assert sum(clock.seconds.values()) == pytest.approx(total, rel=0.2)


def test_part_clock_restores_methods_after_an_error():
    outer = Outer()
    with pytest.raises(ZeroDivisionError), PartClock({"outer": [(outer, "work")]}, CPU):
        raise ZeroDivisionError
    assert "work" not in vars(outer)
    assert outer.work() == "done"


def test_peak_memory_sees_what_was_freed_before_the_end():
    release_freed_memory()  # of earlier tests in this process, which would be used again without growing
    with peak_memory(CPU) as small:
        pass
    with peak_memory(CPU) as large:
        torch.ones(2**25).sum()  # 128 MiB, freed at once
    if "since the start" in large.counts:
        pytest.skip("this system cannot reset its high-water mark")
    assert large.peak_bytes - small.peak_bytes > 100 * 2**20


def test_weights_that_are_shared_count_once_and_packed_ones_too():
    recipe = read_recipe("debug/head_diffusion", ["model.head.width=512", "model.head.depth=1"])
    system = stand_in_system(recipe, seed=0)
    engine = build_engine(system, name="fast", device=torch.device("cpu"), precision="fp32")
    plain, both = bytes_held(system.model), bytes_held(system.model, engine.model)
    assert sum(plain.values()) == sum(parameter.nbytes for parameter in system.model.parameters())
    packed = 2 * 4 * 512 * 512 * onednn_pays(torch.empty(512, 512))  # both layers of the residual block
    assert packed <= sum(both.values()) - sum(plain.values()) < packed + 2**17
    assert both.items() >= plain.items()


def test_a_machine_is_as_fast_as_its_best_product_and_its_best_copy(monkeypatch):
    """A product of n x n matrices takes 2 n^3 operations, and a copy both reads and writes its bytes."""
    seconds = iter([3.0, 2.0, 5.0, 2.5, 4.0, 1.0, 0.5, 2.0, 2.0, 0.75])
    monkeypatch.setattr("marcli.bench.roofline.timed", lambda run, device: next(seconds))
    machine = measure_machine(CPU, torch.float32)
    assert machine.flops_per_second == 2 * 1024**3 / 2.0
    assert machine.bytes_per_second == 2 * 4 * 2**25 / 0.5
