"""From pictures to a record: names, warnings, identical sets, and what every record must say."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from marcli.cli.eval_report import write_result
from marcli.errors import MarcliError
from marcli.metrics.evaluate import EvalResult, distance_name, score_features, summarize
from marcli.metrics.extract import blank_pictures
from marcli.metrics.features import Extractor, pixel_extractor
from marcli.metrics.pictures import open_pictures
from marcli.metrics.references import Reference, measure
from tests.metrics.team import OneOf


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 4, 4), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "x.npz"
    np.savez(path, arr_0=noise(200).permute(0, 2, 3, 1).numpy())
    source = open_pictures(str(path), image_size=None)
    return measure(source, pixel_extractor(), num=None, processes=OneOf(), workers=1)


def evaluate(
    images: torch.Tensor, extractor: Extractor, reference: Reference, *, splits: str = "torch-fidelity"
) -> EvalResult:
    """The scores of generated pictures of 4x4 pixels, whose seed is 3."""
    return score_features(
        extractor(images),
        blank_pictures(images),
        extractor,
        reference,
        image_size=4,
        inception_splits=splits,
        rounding="generated",
        source={"seed": 3},
    )


def test_identical_sets_have_distance_zero(reference):
    result = evaluate(noise(200), pixel_extractor(), reference)
    assert result.metrics["fid"] == 0.0
    assert (result.metrics["precision"], result.metrics["recall"]) == (1.0, 1.0)


def test_a_record_says_how_it_was_made(reference):
    result = evaluate(noise(100, seed=1), pixel_extractor(), reference)
    record = json.loads(json.dumps(result.record()))
    assert record["metrics"]["fid"] > 1 and record["num_images"] == 100
    assert record["protocol"]["features"] == "pixels"
    assert record["protocol"]["rounding"] == "round((x + 1) / 2 * 255), clipped to 0..255"
    assert record["reference"]["name"].endswith("x.npz") and len(record["reference"]["sha256"]) == 64
    assert record["source"] == {"seed": 3}
    assert {"marcli", "torch", "numpy", "python", "pillow", "clean-fid"} <= record["software"].keys()
    assert "inception_score" not in record["metrics"]


def test_inception_score_follows_the_named_protocol(reference):
    classifier = np.random.default_rng(0).normal(size=(7, 48))
    extractor = replace(pixel_extractor(), classifier=classifier)
    images = noise(100, seed=1)
    fidelity = evaluate(images, extractor, reference)
    adm = evaluate(images, extractor, reference, splits="adm")
    assert "10 splits" in fidelity.protocol["inception_score"] and "5,000" in adm.protocol["inception_score"]
    assert adm.metrics["inception_score_std"] == 0.0 < fidelity.metrics["inception_score_std"]


def test_too_few_pictures_have_no_inception_score(reference, tmp_path):
    extractor = replace(pixel_extractor(), classifier=np.random.default_rng(0).normal(size=(7, 48)))
    few, enough = (evaluate(noise(count, seed=1), extractor, reference) for count in (9, 10))
    assert not {"inception_score", "inception_score_std"} & few.metrics.keys()
    assert [text for text in few.warnings if "No Inception Score: 9 pictures do not fill its 10 splits" in text]
    assert enough.metrics["inception_score"] >= 1 and not any("Inception Score" in text for text in enough.warnings)
    assert json.loads(write_result(few, tmp_path).read_text())["metrics"] == few.metrics
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_result(replace(few, metrics={"fid": float("nan")}), tmp_path)


def test_too_few_pictures_have_no_precision_and_recall(reference):
    few, enough = (evaluate(noise(count, seed=1), pixel_extractor(), reference) for count in (3, 4))
    assert few.metrics.keys() == {"fid", "kid", "kid_std"}
    assert "No precision and recall: they need more than 3 pictures on either side." in few.warnings
    assert {"precision", "recall"} <= enough.metrics.keys() and not any("recall" in text for text in enough.warnings)


def test_only_fifty_thousand_pictures_are_called_fid_50k():
    inception = Extractor("inception", "legacy_tensorflow", None, len, len, None, torch.device("cpu"))
    names = [distance_name(inception, count) for count in (50_000, 10_000, 5_000, 49_999, 500)]
    assert names == ["FID-50k", "FID-10k", "FID-5k", "FID-49999", "FID-500"]
    assert distance_name(replace(inception, protocol="clean"), 50_000) == "FID(clean)-50k"
    assert distance_name(replace(inception, name="dinov2"), 50_000) == "FD(dinov2)-50k"


def test_suspicious_sets_are_pointed_out(reference):
    black = torch.zeros(30, 3, 4, 4, dtype=torch.uint8)
    result = evaluate(black, pixel_extractor(), replace(reference, features=reference.features.repeat(1, 0)))
    text = " ".join(result.warnings)
    assert "30 pictures are fewer than the 48 feature dimensions" in text
    assert "30 of 30 pictures show one single colour" in text
    assert "All pictures have the same features" in text


def test_nothing_silent(reference):
    with pytest.raises(MarcliError, match="8-bit pictures"):
        evaluate(noise(2) / 255, pixel_extractor(), reference)
    rows = np.random.default_rng(0).normal(size=(60, 48))
    rows[11, 0] = np.nan
    with pytest.raises(MarcliError, match="first is image 11"):
        score_features(
            rows,
            np.zeros(60, dtype=bool),
            pixel_extractor(),
            reference,
            image_size=4,
            inception_splits="adm",
            rounding="stored",
            source={},
        )


def test_several_seeds_give_mean_and_spread(reference):
    results = [evaluate(noise(60, seed=seed), pixel_extractor(), reference) for seed in (1, 2, 3)]
    values = [result.metrics["fid"] for result in results]
    summary = summarize(results)["fid"]
    assert summary == {
        "mean": pytest.approx(np.mean(values)),
        "spread": pytest.approx(np.std(values, ddof=1)),
        "seeds": 3,
    }
    assert summarize(results[:1])["fid"]["spread"] == 0.0
