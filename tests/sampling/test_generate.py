"""Randomness belongs to the picture: its index and seed decide it, nothing else."""

from concurrent.futures import Executor, Future

import pytest
import torch

from marcli.sampling import generate as generation
from marcli.sampling.engine.build import build_engine
from marcli.sampling.engine.plain import PlainEngine
from marcli.sampling.generate import generate, micro_batches, one_ahead
from marcli.sampling.tape import Tape
from tests.model import tiny

CPU = torch.device("cpu")


def latents_of(recipe, indices, *, batch_size, seed=7):
    """Latents of these pictures, generated `batch_size` at a time."""
    engine = build_engine(tiny.system(recipe), name="plain", device=CPU, precision="fp32")
    parts = []
    for start in range(0, len(indices), batch_size):
        batch = indices[start : start + batch_size]
        labels = torch.tensor([index % 10 for index in batch])
        parts.append(engine.latents(labels=labels, tape=engine.draw_tape(seed=seed, indices=batch), on_step=None))
    return torch.cat(parts)


@pytest.mark.parametrize("combination", tiny.COMBINATIONS, ids=lambda c: "-".join(str(part) for part in c))
@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_same_picture_at_any_batch_size_and_in_any_company(combination, cfg):
    recipe = tiny.recipe(*combination, cfg=cfg)
    whole = latents_of(recipe, list(range(6)), batch_size=6)
    for indices, batch_size in ((list(range(6)), 1), ([5, 2], 2), ([3], 1)):
        other = latents_of(recipe, indices, batch_size=batch_size)
        assert (other - whole[indices]).abs().max() <= 1e-4 * whole.abs().max()
    if combination[2] == "cross_entropy":
        assert len(whole.flatten(1).unique(dim=0)) == 6


def test_another_seed_is_another_picture():
    recipe = tiny.recipe("masked", "random", "diffusion")
    assert not torch.allclose(
        latents_of(recipe, [0], batch_size=1, seed=1), latents_of(recipe, [0], batch_size=1, seed=2)
    )


def test_guidance_changes_pictures_and_cfg_one_needs_no_second_half():
    recipe = tiny.recipe("masked", "random", "diffusion", cfg=1.0)
    guided = tiny.recipe("masked", "random", "diffusion", cfg=3.0)
    calls = []
    model = tiny.model(recipe)
    model.backbone.encoder_norm.register_forward_hook(lambda m, inputs, out: calls.append(len(out)))
    for each in (recipe, guided):
        engine = build_engine(tiny.system(each, model), name="plain", device=CPU, precision="fp32")
        engine.latents(labels=torch.tensor([1, 2]), tape=engine.draw_tape(seed=0, indices=[0, 1]), on_step=None)
    assert calls == [2] * 6 + [4] * 6


def test_micro_batches_hold_every_picture_once_and_the_last_is_cut():
    assert micro_batches(11, 4) == [range(4), range(4, 8), range(8, 11)]
    assert micro_batches(8, 4) == [range(4), range(4, 8)] and micro_batches(3, 64) == [range(3)]


def test_generate_yields_decoded_pictures_with_classes_in_turn():
    recipe = tiny.recipe("masked", "random", "diffusion")
    system = tiny.system(recipe)
    engine = build_engine(system, name="plain", device=CPU, precision="fp32")
    [pictures] = generate(engine, system.tokenizer, classes=[3, 8], seed=0, batches=[range(3, 6)])
    assert pictures.indices == [3, 4, 5] and pictures.labels == [8, 3, 8]
    assert pictures.images.shape == (3, 1, 8, 8) and pictures.images.dtype == torch.uint8


def test_bf16_stays_close_to_fp32():
    recipe = tiny.recipe("masked", "random", "diffusion", cfg=2.0)
    system = tiny.system(recipe)
    results = []
    for precision in ("fp32", "bf16"):
        engine = build_engine(system, name="plain", device=CPU, precision=precision)
        tape = engine.draw_tape(seed=0, indices=range(4))
        results.append(engine.latents(labels=torch.arange(4), tape=tape, on_step=None))
    assert results[1].dtype == torch.float32
    error = (results[0] - results[1]).abs().mean() / results[0].abs().mean()
    assert 0 < error < 0.1
    assert next(system.model.parameters()).dtype == torch.float32


class Cramped:
    """An engine whose device holds at most `room` pictures."""

    def __init__(self, engine, room):
        self.engine, self.room, self.sizes = engine, room, []
        self.name, self.device = engine.name, engine.device

    def under(self, recipe):
        return Cramped(self.engine.under(recipe), self.room)

    def draw_tape(self, **kwargs):
        return self.engine.draw_tape(**kwargs)

    def latents(self, *, labels, tape, on_step):
        self.sizes.append(len(labels))
        if len(labels) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.engine.latents(labels=labels, tape=tape, on_step=on_step)


def test_what_does_not_fit_is_made_in_parts_from_then_on(caplog):
    system = tiny.system(tiny.recipe("masked", "random", "diffusion"))
    engine = build_engine(system, name="plain", device=CPU, precision="fp32")
    wanted = dict(classes=[0, 1, 2], seed=3, batches=[range(5), range(5, 10)])
    cramped = Cramped(engine, room=2)
    batches = zip(
        generate(engine, system.tokenizer, **wanted), generate(cramped, system.tokenizer, **wanted), strict=True
    )
    for whole, parts in batches:
        assert parts.labels == whole.labels and parts.images.shape == whole.images.shape
        assert (parts.images.int() - whole.images.int()).abs().max() <= 1
    assert cramped.sizes == [5, 3, 2, 2, 1, 2, 2, 1]
    assert [record.message for record in caplog.records] == [
        "5 pictures do not fit the memory of cpu: from now on 3",
        "3 pictures do not fit the memory of cpu: from now on 2",
    ]
    with pytest.raises(torch.OutOfMemoryError):
        list(generate(Cramped(engine, room=0), system.tokenizer, **wanted))


def test_a_large_batch_is_decoded_in_parts(monkeypatch):
    system = tiny.system(tiny.recipe("masked", "random", "diffusion"))
    engine = build_engine(system, name="plain", device=CPU, precision="fp32")
    wanted, sizes, decode = dict(classes=[0, 1, 2], seed=3, batches=[range(5)]), [], system.tokenizer.decode
    (whole,) = generate(engine, system.tokenizer, **wanted)
    monkeypatch.setattr(generation, "DECODED_AT_ONCE", 2)
    monkeypatch.setattr(system.tokenizer, "decode", lambda latents: sizes.append(len(latents)) or decode(latents))
    (parts,) = generate(engine, system.tokenizer, **wanted)
    assert sizes == [2, 2, 1] and torch.equal(parts.images, whole.images)


class AtOnce(Executor):
    """Does what is submitted before it returns."""

    def submit(self, function, /, *args, **kwargs):
        done = Future()
        done.set_result(function(*args, **kwargs))
        return done


def test_one_tape_is_drawn_ahead_and_never_two():
    drawn = []

    def draw(indices):
        drawn.append(indices)
        return Tape(torch.tensor([indices]), torch.zeros(1, 1, 1, 1))

    ahead = one_ahead(AtOnce(), draw, [[0], [1], [2]])
    for number, (indices, tape) in enumerate(ahead):
        assert indices == [number] and tape.order.item() == number
        assert drawn == [[0], [1], [2]][: number + 2]
    assert number == 2
    assert list(one_ahead(AtOnce(), draw, [])) == []


def test_pictures_have_orders_of_their_own():
    of = tiny.recipe("masked", "random", "diffusion")
    first, second = PlainEngine(tiny.model(of), of).draw_tape(seed=0, indices=[0, 1]).order.tolist()
    assert first != second
