"""Approximations: each changes what it says, the same way on every engine, and is refused where it cannot act."""

import pytest
import torch
from pydantic import ValidationError

from marcli.cli.options import preset_overrides
from marcli.errors import UsageError
from marcli.model.grid import to_tokens
from marcli.model.layers.embed import take
from marcli.model.order import reveal_counts
from marcli.model.process.solvers import process_for
from marcli.recipe.approximate import OF_THE_DIFFUSION_HEAD, PRESETS, Approximate, approximation_lines, switched_on
from marcli.recipe.reader import read_recipe, shipped_recipe
from marcli.sampling.engine.approximate import annealed_steps, plan
from marcli.sampling.engine.base import head_sampling, schedule_of
from marcli.sampling.engine.checkerboard import checkerboard_order, checkerboard_schedule
from marcli.sampling.engine.fast import FastEngine
from marcli.sampling.engine.plain import PlainEngine
from tests.model.tiny import COMBINATIONS, head_settings, model, recipe

LABELS = torch.tensor([1, 7, 4])
SWITCHES = {
    "final_diffusion_steps": 2,
    "solver": "dpm++2m",
    "guidance_from": 1.6,
    "guidance_refresh": 3,
    "head_guidance_refresh": 3,
    "feature_refresh": 3,
    "order": "checkerboard",
}


def masked(**switches):
    return recipe("masked", "random", "diffusion", cfg=3.0, diffusion_steps=12, approximate=switches)


def latents(engine):
    return engine.latents(labels=LABELS, tape=engine.draw_tape(seed=0, indices=range(3)), on_step=None)


@pytest.mark.parametrize("switch", [*SWITCHES, None])
def test_the_same_approximation_on_every_engine(switch):
    of = masked(**(SWITCHES if switch is None else {switch: SWITCHES[switch]}))
    whole = model(of)
    plain, fast = latents(PlainEngine(whole, of)), latents(FastEngine(whole, of))
    assert (plain - fast).abs().max() <= 1e-5 * plain.abs().max()
    exact = masked()
    assert not torch.allclose(plain, latents(PlainEngine(whole, exact)), rtol=1e-3)


def test_every_step_is_shown_with_the_tokens_that_stay():
    of, seen = masked(**SWITCHES), []
    engine = PlainEngine(model(of), of)
    tape = engine.draw_tape(seed=0, indices=range(3))
    made = engine.latents(labels=LABELS, tape=tape, on_step=lambda *shown: seen.append(shown))
    assert [step.index for step, _, _ in seen] == list(range(of.sample.steps))
    for step, known, order in seen:
        assert known.shape[1] == step.known + step.count
        assert torch.equal(known, take(to_tokens(made, of.model.patch_size), order)[:, : known.shape[1]])


@pytest.mark.parametrize(
    "switches", [{"guidance_refresh": 3, "guidance_from": 2.9}, {"final_diffusion_steps": 12}, {"guidance_from": 1.0}]
)
def test_switches_that_leave_nothing_out_change_nothing(switches):
    of = masked(**switches)
    whole = model(of)
    exact = recipe("masked", "random", "diffusion", cfg=3.0, diffusion_steps=12)
    planned = plan(schedule_of(of), head_sampling(of), of.sample.approximate, guided=of.sample.cfg > 1)
    assert all(now.refresh or not now.guided for now in planned)
    if all(now.guided for now in planned):
        assert torch.equal(latents(PlainEngine(whole, of)), latents(PlainEngine(whole, exact)))


def test_the_unconditional_half_of_the_head_runs_now_and_then():
    of = masked(head_guidance_refresh=4)
    head, settings = model(of).head, head_sampling(of)
    steps = len(process_for(settings.solver, head.process, settings.diffusion_steps, settings.max_timestep))
    rows, differences = [], []
    denoise = head.denoiser.forward

    def watched(x, t, z):
        rows.append(len(x))
        output = denoise(x, t, z)
        if len(x) == 6:
            differences.append((output[3:] - output[:3]).abs().max())
        return output

    head.denoiser.forward = watched
    z, z_null, noise = torch.randn(3, 2, 32), torch.randn(3, 2, 32), torch.randn(3, 2, 13, 4)
    head.sample(z, z_null, 3.0, noise, settings)
    assert steps == 12 and [i for i, count in enumerate(rows) if count == 6] == [0, 3, 7, 11] and len(rows) == 12
    assert min(differences) > 0
    rows.clear()
    head.sample(z, None, 3.0, noise, settings)
    assert rows == [3] * 12


def test_features_are_refreshed_at_first_when_due_and_when_a_difference_is_taken():
    of = masked(feature_refresh=3)
    planned = plan(schedule_of(of), head_sampling(of), of.sample.approximate, guided=of.sample.cfg > 1)
    assert [now.share is None for now in planned] == [True, False, False, True, False, False]
    of = masked(feature_refresh=5, guidance_refresh=2)
    planned = plan(schedule_of(of), head_sampling(of), of.sample.approximate, guided=of.sample.cfg > 1)
    assert [now.share is None for now in planned] == [now.refresh for now in planned] == [True, False] * 3


def test_the_plain_engine_takes_the_backbone_apart_once():
    of = masked(feature_refresh=3)
    engine = PlainEngine(model(of), of)
    first, blocks = latents(engine), engine.blocks
    assert torch.equal(latents(engine), first) and engine.blocks is engine.under(masked()).blocks is blocks


def test_diffusion_steps_fall_linearly():
    assert [annealed_steps(i, 64, 50, 5) for i in (0, 32, 63)] == [50, 5 + int(31 / 63 * 45), 5]
    assert [annealed_steps(i, 64, 50, None) for i in (0, 63)] == [50, 50]
    assert annealed_steps(0, 1, 50, 5) == 50


def test_transformer_runs_both_halves_only_where_planned():
    of = masked(guidance_refresh=3)
    whole, halves = model(of), []
    whole.backbone.encoder_norm.register_forward_hook(lambda module, inputs, out: halves.append(len(out) // 3))
    latents(PlainEngine(whole, of))
    assert halves == [2, 1, 1, 2, 1, 1]


def test_guidance_starts_where_it_is_strong_enough():
    of = masked(guidance_from=1.6)
    planned = plan(schedule_of(of), head_sampling(of), of.sample.approximate, guided=of.sample.cfg > 1)
    assert [now.guided for now in planned] == [now.step.guidance >= 1.6 for now in planned]
    assert not planned[0].guided and planned[-1].guided


def test_reused_difference_belongs_to_the_same_token():
    """With a transformer whose output depends on class and position alone, reusing the difference is exact."""
    of = masked(guidance_refresh=3)
    whole = model(of)
    for block in (*whole.backbone.encoder, *whole.backbone.decoder):
        torch.nn.init.zeros_(block.attn.proj.weight)  # no token sees another
    exact = recipe("masked", "random", "diffusion", cfg=3.0, diffusion_steps=12)
    given, expected = latents(PlainEngine(whole, of)), latents(PlainEngine(whole, exact))
    assert (given - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("num_tokens, num_steps", [(16, 6), (256, 64), (256, 20), (9, 9), (16, 2)])
def test_checkerboard_reveals_every_token_once_one_colour_first(num_tokens, num_steps):
    steps = checkerboard_schedule(num_tokens=num_tokens, num_steps=num_steps, cfg=3.0, cfg_schedule="linear")
    assert len(steps) == num_steps and all(step.count >= 1 for step in steps)
    assert sum(step.count for step in steps) == num_tokens
    assert [step.known for step in steps] == [sum(s.count for s in steps[:i]) for i in range(num_steps)]
    order = torch.stack([torch.randperm(num_tokens) for _ in range(3)])
    ordered, side = checkerboard_order(order), round(num_tokens**0.5)
    assert torch.equal(ordered.sort(1).values, order.sort(1).values)
    colours = (ordered // side + ordered % side) % 2
    assert torch.equal(colours, colours.sort(1).values)
    assert (num_tokens + 1) // 2 in {step.known for step in steps}


def test_random_counts_are_untouched():
    assert [step.count for step in schedule_of(masked())] == reveal_counts(16, 6)


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda c: "-".join(str(part) for part in c))
@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_is_refused_where_it_cannot_act(combination, switch):
    backbone, order, head = combination
    acts = (
        backbone != "dit"
        and order != "confidence"
        and (head == "diffusion" or switch not in OF_THE_DIFFUSION_HEAD)
        and (backbone == "masked" or switch in OF_THE_DIFFUSION_HEAD)
        and (order == "random" or switch != "order")
    )
    if acts:
        of = recipe(*combination, cfg=3.0, approximate={switch: SWITCHES[switch]})
        assert latents(FastEngine(model(of), of)).isfinite().all()
    else:
        with pytest.raises(ValidationError, match=rf"sample\.approximate\.{switch}"):
            recipe(*combination, cfg=3.0, approximate={switch: SWITCHES[switch]})


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit_the_shipped_recipes_and_say_what_they_do(name):
    for shipped in ("digits", "mar_b"):
        of = read_recipe(shipped_recipe(shipped), preset_overrides(name))
        assert of.sample.approximate.preset == name and switched_on(of.sample.approximate)
        (line,) = approximation_lines(of.sample.approximate)
        assert line.startswith(f"approximate: preset {name}: ")
    given = read_recipe(shipped_recipe("digits"), [*preset_overrides(name), "sample.diffusion_steps=17"])
    assert given.sample.diffusion_steps == 17


def test_exact_is_the_default_and_says_nothing():
    assert approximation_lines(Approximate()) == [] and preset_overrides(None) == []


def test_a_preset_never_names_another_folder():
    with pytest.raises(ValidationError, match=r"approximate\.preset"):
        recipe("masked", "random", "diffusion", approximate={"preset": "../elsewhere", "solver": "ddim"})


def test_unknown_preset_is_refused():
    with pytest.raises(UsageError, match="choose disa"):
        preset_overrides("warp")


@pytest.mark.parametrize("solver", ["ddim", "dpm++2m"])
def test_temperature_acts_on_every_engine(solver):
    of = recipe("masked", "random", "diffusion", cfg=2.0, temperature=0.5, approximate={"solver": solver})
    whole = model(of)
    made = {}
    for engine in (PlainEngine(whole, of), FastEngine(whole, of)):
        tape = engine.draw_tape(seed=0, indices=[0, 1])
        made[engine.name] = engine.latents(labels=torch.tensor([1, 2]), tape=tape, on_step=None)
    assert (made["fast"] - made["plain"]).abs().max() <= 1e-5 * made["plain"].abs().max()
    hot = recipe("masked", "random", "diffusion", cfg=2.0, approximate={"solver": solver})
    other = PlainEngine(whole, hot)
    tape = other.draw_tape(seed=0, indices=[0, 1])
    assert not torch.allclose(other.latents(labels=torch.tensor([1, 2]), tape=tape, on_step=None), made["plain"])


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ({"diffusion_steps": 4, "approximate": {"final_diffusion_steps": 5}}, "diffusion steps fall to it"),
        ({"diffusion_steps": 1}, "at least 2"),
        ({"approximate": {"final_diffusion_steps": 1}}, "at least 2"),
    ],
)
def test_diffusion_steps_that_cannot_be_are_refused(sample, words):
    with pytest.raises(ValueError, match=words):
        recipe("masked", "random", "diffusion", **sample)


def test_without_guidance_no_difference_is_taken():
    of = recipe("masked", "random", "diffusion", approximate={"feature_refresh": 4, "guidance_refresh": 2})
    planned = plan(schedule_of(of), head_sampling(of), of.sample.approximate, guided=False)
    assert [now.share is None for now in planned] == [True, False, False, False, True, False]
    assert not any(now.guided or now.refresh for now in planned)


def test_the_tape_is_long_enough_for_every_step_of_an_annealing():
    """108 steps of DPM-Solver++ visit fewer distinct timesteps than 107."""
    head = model(recipe("masked", "random", "diffusion")).head
    generator = torch.Generator().manual_seed(0)
    for first in (9, 108, 300):
        settings = head_settings(diffusion_steps=first, solver="dpm++2m")
        draws = head.noise(generator, 1, 6, settings).shape[1]
        visited = [len(process_for("dpm++2m", head.process, steps, 999)) for steps in range(2, first + 1)]
        assert draws > max(visited)
