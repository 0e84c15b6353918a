"""The whole path from files to scores with Inception's layouts: by hand, and against torch-fidelity's own command."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from marcli.cli.app import run
from marcli.runtime.atomic import sha256_file
from tests.metrics import adm_suite


def noise(count: int, seed: int, size: int = 32) -> np.ndarray:
    """Smooth random pictures: noise alone looks the same to every network."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 5, 5, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((size, size), Image.Resampling.BICUBIC)) for c in coarse])


def evaluate(capsys, *arguments: object) -> dict:
    assert run(["eval-fid", *map(str, arguments), "--gpus", "0", "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_adm_reference_through_the_torchscript_network(tmp_path, torchscript_inception, capsys, monkeypatch):
    monkeypatch.setenv("MARCLI_CACHE", str(tmp_path / "cache"))
    samples, real = noise(30, seed=0), noise(40, seed=1)
    network = torch.jit.load(torchscript_inception)

    def features_of(images: np.ndarray, **how: bool) -> np.ndarray:
        return network(torch.from_numpy(images).permute(0, 3, 1, 2), **how).detach().double().numpy()

    features, of_real = features_of(samples, return_features=True), features_of(real, return_features=True)
    mu, sigma = of_real.mean(0), np.cov(of_real, rowvar=False) + 1e-3 * np.eye(2048)
    np.savez(tmp_path / "VIRTUAL.npz", arr_0=real, mu=mu, sigma=sigma)
    np.savez(tmp_path / "samples.npz", arr_0=samples)
    record = evaluate(
        capsys,
        *("--images", tmp_path / "samples.npz", "--reference", tmp_path / "VIRTUAL.npz"),
        *("--inception", torchscript_inception, "--inception-sha256", sha256_file(torchscript_inception)),
    )
    # One covariance has full rank here, so the plain formula on the other side is accurate to about 1e-7.
    expected = adm_suite.frechet((features.mean(0), np.cov(features, rowvar=False)), (mu, sigma))
    assert record["metrics"]["fid"] == pytest.approx(expected, rel=1e-5)
    expected = adm_suite.precision_recall(of_real, features, 3)
    assert (record["metrics"]["precision"], record["metrics"]["recall"]) == pytest.approx(expected)
    probabilities = features_of(samples, no_output_bias=True)[np.random.RandomState(2020).permutation(30)]
    assert record["metrics"]["inception_score"] == pytest.approx(adm_suite.inception_score(probabilities, 3), rel=1e-5)
    assert record["distance_name"] == "FID-30"
    [result] = record["results"]
    assert result["protocol"]["protocol"] == "legacy_tensorflow"
    assert result["protocol"]["weights_sha256"] == sha256_file(torchscript_inception)
    assert result["reference"]["sha256"] == sha256_file(tmp_path / "VIRTUAL.npz")
    assert result["reference"]["num_images_for_precision_recall"] == 40
    assert any("fewer than the 2,048 feature dimensions" in warning for warning in result["warnings"])


@pytest.mark.slow
def test_torch_fidelity_finds_the_same_scores_on_the_same_files(tmp_path, state_dict_inception, capsys, monkeypatch):
    fidelity = pytest.importorskip("torch_fidelity")
    monkeypatch.setenv("MARCLI_CACHE", str(tmp_path / "cache"))
    for name, count, seed in (("samples", 20, 0), ("real", 16, 1)):
        (tmp_path / name).mkdir()
        for index, image in enumerate(noise(count, seed)):
            Image.fromarray(image).save(tmp_path / name / f"{index:06d}.png")
    theirs = fidelity.calculate_metrics(
        input1=str(tmp_path / "samples"),
        input2=str(tmp_path / "real"),
        cuda=False,
        fid=True,
        isc=True,
        kid=True,
        prc=True,
        kid_subset_size=16,
        feature_extractor="inception-v3-compat",  # else precision and recall would take VGG
        feature_extractor_weights_path=str(state_dict_inception),
        cache=False,
        verbose=False,
    )
    ours = evaluate(
        capsys,
        *("--images", tmp_path / "samples", "--reference", tmp_path / "real"),
        *("--inception", state_dict_inception, "--inception-sha256", sha256_file(state_dict_inception)),
    )["metrics"]
    assert ours["inception_score"] == pytest.approx(theirs["inception_score_mean"], rel=1e-5)
    assert ours["inception_score_std"] == pytest.approx(theirs["inception_score_std"], rel=1e-3)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=2e-3)  # their kernels are fp32
    assert (ours["precision"], ours["recall"]) == pytest.approx((theirs["precision"], theirs["recall"]))
    # They take the root of a singular product of fp32 features; ours is exact.
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
