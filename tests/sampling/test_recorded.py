"""Recordings, with a stand-in for CUDA graphs that runs the recorded function again on the recorded inputs."""

import gc
import itertools
import logging
import weakref

import pytest
import torch

from marcli.runtime.graphs import Recorded
from marcli.sampling.engine import features
from marcli.sampling.engine.compiled import FastOrPlain, compilable, compile_parts
from marcli.sampling.engine.dit import DiTEngine
from marcli.sampling.engine.fast import FastEngine, fast_twin
from marcli.sampling.engine.plain import PlainEngine
from marcli.sampling.engine.recorded import recorded_dit
from tests.model.tiny import COMBINATIONS, model, recipe
from tests.sampling.alone import run_alone

LABELS = torch.tensor([1, 7, 4])


class Again:
    """Captures by keeping the function; a replay computes it into the place of the first result.

    A graph computes nothing while it is captured; here that computation stands for the first replay.
    """

    def __init__(self, failing_from=None):
        self.captured, self.replayed, self.failing_from = 0, 0, failing_from

    def __call__(self, function):
        if self.failing_from is not None and self.captured >= self.failing_from:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more")
        self.captured += 1
        result, replays = function().clone(), itertools.count()

        def replay():
            self.replayed += 1
            if next(replays) > 0:
                result.copy_(function())

        return replay, result


def latents(engine, seed=0):
    return engine.latents(labels=LABELS, tape=engine.draw_tape(seed=seed, indices=range(3)), on_step=None)


def recorded_engine(whole, of, capture):
    engine = FastEngine(whole, of)
    engine.record(capture)
    return engine


ANNEALED = {"approximate": {"final_diffusion_steps": 2, "solver": "dpm++2m"}}
LAZY = {"steps": 8, "approximate": {"feature_refresh": 4, "guidance_refresh": 4, "guidance_from": 1.2}}
RECORDED = [
    *((combination, {}) for combination in COMBINATIONS),
    *((combination, ANNEALED) for combination in COMBINATIONS if combination[2] == "diffusion"),
    (("causal", "random", "diffusion"), {"kv_cache": False}),
    (("masked", "random", "diffusion"), LAZY),
]


@pytest.mark.parametrize(("combination", "settings"), RECORDED, ids=str)
def test_same_pictures_from_recordings(combination, settings):
    of = recipe(*combination, cfg=3.0, **settings)
    whole, capture = model(of), Again()
    if combination[0] == "dit":
        plain, engine = DiTEngine(whole, of), DiTEngine(recorded_dit(whole, capture), of)
    else:
        plain, engine = PlainEngine(whole, of), recorded_engine(whole, of, capture)
    for seed in (0, 1, 2):  # the second batch is recorded, the third replayed throughout
        captured, replayed = capture.captured, capture.replayed
        expected = latents(plain, seed)
        assert (latents(engine, seed) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert capture.captured == captured
    assert capture.replayed > replayed


def test_one_recording_per_count_of_tokens_serves_every_guidance():
    of = recipe("masked", "random", "diffusion", cfg=3.0)
    capture = Again()
    engine = recorded_engine(model(of), of, capture)
    for _ in range(3):
        latents(engine)
    counts = {step.count for step in engine.schedule}
    assert capture.captured == len(counts) + len(engine.schedule)


def test_one_batch_records_its_head_and_the_second_its_transformer():
    of = recipe("masked", "random", "diffusion", cfg=3.0, steps=6)
    whole, capture = model(of), Again()
    engine = recorded_engine(whole, of, capture)
    counts = [step.count for step in engine.schedule]
    recurring = {count for count in counts if counts.count(count) > 1}
    assert 0 < len(recurring) < len(set(counts)), "the test would show nothing"
    for seed, captured in ((0, len(recurring)), (1, len(set(counts)) + len(counts))):
        expected = latents(PlainEngine(whole, of), seed)
        assert (latents(engine, seed) - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert capture.captured == captured


def test_what_a_feature_cache_computes_is_recorded_step_by_step_for_each_batch_size(monkeypatch):
    monkeypatch.setattr(features, "SPARE_TOKENS", 2)
    of = recipe("masked", "random", "diffusion", cfg=3.0, **LAZY)
    whole, capture = model(of), Again()
    plain, engine = PlainEngine(whole, of), recorded_engine(whole, of, capture)
    places = []  # of the features, where graphs would read and write
    for seed, labels in enumerate(([1, 7, 4], [5], [2, 2, 9], [8], [0, 3, 6], [1])):
        made, expected = (
            each.latents(
                labels=torch.tensor(labels), tape=each.draw_tape(seed=seed, indices=range(len(labels))), on_step=None
            )
            for each in (engine, plain)
        )
        assert (made - expected).abs().max() <= 1e-5 * expected.abs().max()
        kept = engine.cached_backbone.function.features[len(labels)]
        tensors = (kept.inputs, *itertools.chain(*kept.keys_values.values()))
        places.append([tensor.data_ptr() for tensor in tensors])
    assert places[0] == places[2] == places[4] and places[1] == places[3] == places[5]
    assert len(engine.cached_backbone.recordings) == 2 * len(engine.schedule)
    assert any(now.share is not None for now in engine.planned)


def test_a_result_survives_the_next_replay():
    recorded = Recorded(lambda tensors, setting: tensors[0] * setting, Again())
    for setting in (2, 3):
        recorded([torch.tensor([0.0])], setting)
    first = recorded([torch.tensor([1.0])], 2)
    second = recorded([torch.tensor([5.0])], 2)
    assert first.item() == 2 and second.item() == 10 and recorded([torch.tensor([5.0])], 3).item() == 15
    third = recorded([torch.tensor([7.0])], 2)
    assert second.item() == 10 and third.item() == 14, "two replays of one recording"


def test_a_recording_has_inputs_of_its_own_and_one_kind_of_numbers():
    recorded = Recorded(lambda tensors, setting: tensors[0] / setting, Again())
    given = torch.tensor([1, 3])
    for _ in range(2):
        recorded([given], 2)
    assert recorded([torch.tensor([5, 7])], 2).tolist() == [2.5, 3.5] and given.tolist() == [1, 3]
    assert recorded([torch.tensor([0.5, 1.5])], 2).tolist() == [0.25, 0.75]


def test_an_engine_and_its_recordings_leave_with_their_last_user():
    of = recipe("masked", "random", "diffusion", cfg=3.0)
    engine = recorded_engine(model(of), of, Again())
    latents(engine)
    blocks = weakref.ref(engine.blocks)
    gc.collect()
    gc.disable()
    try:
        del engine
        assert blocks() is None
    finally:
        gc.enable()


def test_after_a_failure_the_function_itself_runs_and_one_line_says_why(caplog):
    of = recipe("masked", "random", "diffusion", cfg=3.0)
    whole = model(of)
    with caplog.at_level(logging.WARNING, logger="marcli"):
        engine = recorded_engine(whole, of, Again(failing_from=1))
        given = [latents(engine), latents(engine)]
    expected = latents(PlainEngine(whole, of))
    assert all((each - expected).abs().max() <= 1e-5 * expected.abs().max() for each in given)
    assert {record.message for record in caplog.records} == {
        "going on without further CUDA graphs: CUDA error: operation not permitted when stream is capturing"
    }
    assert len(caplog.records) == 2  # one for the head, one for the backbone


def test_a_compiler_that_fails_leaves_the_plain_code_and_one_line(caplog, monkeypatch):
    def broken(function, **options):
        def raise_error(*args, **kwargs):
            raise RuntimeError("no working C++ compiler\nand more")

        return raise_error

    of = recipe("masked", "random", "diffusion", cfg=3.0)
    whole = model(of)
    engine = FastEngine(whole, of)
    assert len(list(compilable(engine.model))) == 2 + 2 + 2
    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(FastOrPlain, "told", set())
    compile_parts(compilable(engine.model))
    with caplog.at_level(logging.WARNING, logger="marcli"):
        given = latents(engine)
    expected = latents(PlainEngine(whole, of))
    assert (given - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert [r.message for r in caplog.records] == ["going on without torch.compile: no working C++ compiler"]


COMPILED = """
import torch
from torch._dynamo.eval_frame import _debug_get_cache_entry_list
from marcli.sampling.engine import linear
from marcli.sampling.engine.compiled import compilable, compile_parts
from marcli.sampling.engine.fast import FastEngine
from marcli.sampling.engine.plain import PlainEngine
from tests.model import tiny

torch._dynamo.config.fail_on_recompile_limit_hit = True
linear.onednn_pays = lambda weight: False  # as on a GPU
tiny.BACKBONES["masked"] |= {"encoder_depth": 6, "decoder_depth": 6}  # more blocks than dynamo would recompile for

def latents(engine, labels):
    tape = engine.draw_tape(seed=0, indices=range(len(labels)))
    return engine.latents(labels=torch.tensor(labels), tape=tape, on_step=None)

apart = compiled = 0
for solver in ("ancestral", "dpm++2m"):
    of = tiny.recipe("masked", "random", "diffusion", cfg=3.0, diffusion_steps=12, approximate={"solver": solver})
    model = tiny.model(of)
    engine = FastEngine(model, of)
    compile_parts(compilable(engine.model))
    for labels in ([1, 7, 4], [1]):
        expected = latents(PlainEngine(model, of), labels)
        apart = max(apart, ((latents(engine, labels) - expected).abs().max() / expected.abs().max()).item())
    compiled += sum(part.forward.run is not part.forward.plain for part in compilable(engine.model))
variants = {type(part): part for part in compilable(engine.model)}
print(apart, compiled, *(len(_debug_get_cache_entry_list(kind.forward.__code__)) for kind in variants))
"""


COMPILED_DIT = """
import torch
from torch._dynamo.eval_frame import _debug_get_cache_entry_list
from marcli.sampling.engine.compiled import compile_parts
from marcli.sampling.engine.convert import converter
from marcli.sampling.engine.dit import DiTEngine
from tests.model import tiny

torch._dynamo.config.fail_on_recompile_limit_hit = True
of = tiny.recipe("dit", None, None, cfg=3.0, diffusion_steps=4)
plain = DiTEngine(tiny.model(of), of)
twin = converter(torch.device("cpu"), torch.float32)(plain.model)
compile_parts(twin.transformer.transformer_blocks)
apart = 0
for labels in (torch.tensor([1, 7, 4]), torch.tensor([1])):
    tape = plain.draw_tape(seed=0, indices=range(len(labels)))
    made, expected = (each.latents(labels=labels, tape=tape, on_step=None) for each in (DiTEngine(twin, of), plain))
    apart = max(apart, ((made - expected).abs().max() / expected.abs().max()).item())
blocks = twin.transformer.transformer_blocks
compiled = sum(block.forward.run is not block.forward.plain for block in blocks)
print(apart, compiled, len(_debug_get_cache_entry_list(type(blocks[0]).forward.__code__)))
"""


@pytest.mark.slow
def test_a_compiled_dit_computes_the_same():
    ((apart, compiled, variants),) = run_alone(COMPILED_DIT)
    assert float(apart) <= 1e-5
    assert int(compiled) == 2
    assert 1 <= int(variants) <= 4


@pytest.mark.slow
def test_compiled_parts_compute_the_same_in_few_variants():
    ((apart, compiled, *variants),) = run_alone(COMPILED)
    assert float(apart) <= 1e-5
    assert int(compiled) == 2 * (2 + 6 + 6)
    assert max(map(int, variants)) <= 12, "every diffusion step is compiled anew"


def test_the_twin_shares_no_part_with_the_model():
    whole = model(recipe("masked", "random", "diffusion"))
    twin = fast_twin(whole)
    assert twin.head is not whole.head and twin.backbone.encoder is not whole.backbone.encoder
