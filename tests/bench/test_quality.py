"""The tally against the plain distance, the jackknife against the spread over real seeds, and who may judge whom."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from PIL import Image

from marcli.bench.quality import Judge, Tally, build_judge
from marcli.bench.stand_in import stand_in_system
from marcli.errors import MarcliError, UsageError
from marcli.metrics.features import pixel_extractor
from marcli.metrics.frechet import frechet_distance
from marcli.metrics.references import Reference
from marcli.metrics.statistics import gaussian_from_features
from marcli.recipe.reader import read_recipe
from marcli.runtime.accelerator import start_processes
from tests.bench.asked import plan_request

SIDE = 2


def pictures(seed: int, count: int, shift: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 200 + shift, (count, 1, SIDE, SIDE), generator=generator, dtype=torch.uint8)


def judge_of(real: torch.Tensor) -> Judge:
    extractor = pixel_extractor()
    gaussian = gaussian_from_features(real.flatten(1).double().numpy() / 255 * 16)
    reference = Reference("made up", "0" * 64, gaussian, None, SIDE, extractor.identity, stated=True)
    return Judge(extractor, reference)


def test_tally_is_the_distance_of_all_pictures_at_once():
    real, made = pictures(0, 500), pictures(1, 330, shift=55)
    tally = Tally(judge_of(real))
    for batch in made.split(30):
        tally.add(batch)
    expected = frechet_distance(
        gaussian_from_features(made.flatten(1).double().numpy() / 255 * 16), tally.judge.reference.gaussian
    )
    assert tally.count == 330
    assert tally.distance()[0] == pytest.approx(expected, rel=1e-6)


def test_jackknife_is_the_spread_over_seeds():
    judge = judge_of(pictures(0, 5000))
    distances, errors = [], []
    for seed in range(1, 31):
        tally = Tally(judge)
        for batch in pictures(seed, 640, shift=55).split(40):
            tally.add(batch)
        distance, error = tally.distance()
        distances.append(distance)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(distances, ddof=1), rel=0.35)


def test_no_error_is_claimed_from_a_single_batch():
    tally = Tally(judge_of(pictures(0, 100)))
    tally.add(pictures(1, 50))
    assert tally.distance()[1] is None


def test_a_grey_codebook_in_three_channels_is_judged_by_one():
    real, made = pictures(0, 500), pictures(1, 330, shift=55)
    in_one, in_three = Tally(judge_of(real)), Tally(judge_of(real))
    in_one.add(made)
    in_three.add(made.expand(-1, 3, -1, -1))
    assert in_three.distance()[0] == pytest.approx(in_one.distance()[0], rel=1e-9)


def test_the_judge_knows_its_weights():
    network = torch.nn.Linear(3, 5)
    extractor = dataclasses.replace(pixel_extractor(), network=network)
    assert sum(Judge(extractor, reference=None).weights.values()) == 4 * (15 + 5)


def test_options_of_inception_need_inception():
    recipe = read_recipe("digits", [])
    asked = dataclasses.replace(plan_request(specs=("runs/digits",), batch_size=4), inception="inception.pt")
    with pytest.raises(UsageError, match="--inception is for --features inception, and here they are pixels"):
        build_judge([stand_in_system(recipe, seed=0)], asked, None)


def test_a_broken_training_picture_costs_the_quality_and_not_the_bench(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    recipe = read_recipe("debug/head_diffusion", [f"data.path={tmp_path}", "data.num_classes=1"])
    asked = plan_request(specs=("runs/digits",), batch_size=4)
    processes, systems = start_processes(precision="fp32", gpus="0"), [stand_in_system(recipe, seed=0)]
    judge, said = build_judge(systems, asked, processes)
    assert judge is None and re.match(r"Only speed is measured\. .*1\.png cannot be read", said)
    with pytest.raises(MarcliError, match=r"1\.png cannot be read"):
        build_judge(systems, dataclasses.replace(asked, quality=True), processes)


@pytest.mark.parametrize("wanted", [{"quality": True}, {"reference": "digits"}])
def test_colours_are_not_judged_by_grey_pictures(wanted):
    """Digits in three channels are grey, and random weights make colours of them."""
    system = stand_in_system(read_recipe("debug/head_diffusion", ["data.channels=3"]), seed=0)
    asked = plan_request(specs=("runs/digits",), batch_size=4)
    processes = start_processes(precision="fp32", gpus="0")
    judge, said = build_judge([system], asked, processes)
    assert judge is None
    assert said.startswith("Only speed is measured. The reference digits holds grey pictures only, and the samples are")
    with pytest.raises(UsageError, match="the samples are in colour"):
        build_judge([system], dataclasses.replace(asked, **wanted), processes)
