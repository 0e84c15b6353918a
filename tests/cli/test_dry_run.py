"""`--dry-run`: what would happen, in words and as JSON, with nothing written."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from marcli.cli.app import run
from tests.model import tiny
from tests.sampling.runs import write_run

PLACES = {
    "train": {"run", "weights", "metrics", "checkpoints", "samples"},
    "cache-latents": {"cache"},
}


@pytest.mark.parametrize("command", PLACES)
def test_says_what_would_happen_and_writes_nothing(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [command, "recipes/mar_b.yaml", "data.path=photos", "train.lr=2e-4", "--dry-run"]
    assert run(given) == 0
    text = capsys.readouterr().out
    assert "  path: photos\n" in text and "  lr: 0.0002\n" in text
    assert "# parameters: total 207,924,768, head 35,749,920\n" in text
    assert all(f"# {place}: " in text and "(not there yet)" in text for place in PLACES[command])
    assert run([*given, "--json"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["recipe"]["train"]["lr"] == 2e-4
    assert record["parameters"] == {"total": 207_924_768, "head": 35_749_920}
    assert set(record["places"]) == PLACES[command]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("command", "place"), [("train", "--out={}"), ("cache-latents", "data.latents={}")])
def test_what_would_become_a_class_of_the_images_is_refused(
    command: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "photos")
    given = [command, "digits", "--dry-run"]
    for refused in ([f"data.path={tmp_path}/photos", place.format("cat/x")], ["data.path=."]):
        assert run([*given, *refused]) == 2
        assert "would become a class: choose a folder elsewhere with" in capsys.readouterr().err
    for fine in ([f"data.path={tmp_path}/photos", place.format("../x")], ["data.path=.", place.format(".x")]):
        assert run([*given, *fine]) == 0
    metadata = tmp_path / "photos" / "metadata.parquet"
    pq.write_table(pa.table({"file_name": ["cat/0.png"]}), metadata)
    assert run([*given, "data.path=."]) == 2
    metadata.unlink()
    (tmp_path / "photos" / "0.parquet").touch()
    assert run([*given, "data.path=."]) == 0


def test_a_training_says_its_work(capsys: pytest.CaptureFixture[str]) -> None:
    """Forward and backward of 15 % of the tokens in the encoder, all in the decoder and four draws in the head."""
    run(["train", "recipes/mar_b.yaml", "--dry-run", "--json"])
    flops = json.loads(capsys.readouterr().out.splitlines()[-1])["flops_per_image"]
    encoder, decoder, head = 12 * 85.1e6 / 12 * (64 + 34), 12 * 85.1e6 / 12 * 320, 4 * 222 * 35.7e6
    assert flops == pytest.approx(6 * (encoder + decoder + head), rel=0.15)


@pytest.fixture
def finished_run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "tiny", tiny.recipe("masked", "random", "diffusion"))


@pytest.mark.parametrize(
    ("given", "facts", "place"),
    [
        (
            ["--images", "digits", "--num", "100"],
            "# images: 100\n# source: digits\n# image size: 8\n# features: inception\n# reference: digits\n",
            "results",
        ),
        (
            ["recipes/digits.yaml", "--make-stats", "s.npz"],
            "# images: 1,797\n# source: digits\n# image size: 8\n# features: inception\n",
            "statistics",
        ),
    ],
)
def test_an_evaluation_says_its_pictures_before_any_network_is_there(
    given: list[str],
    facts: str,
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Inception's weights cannot be had here, and are not missed."""
    monkeypatch.chdir(tmp_path)
    reference = [] if "--make-stats" in given else ["--reference", "digits"]
    assert run(["eval-fid", *given, *reference, "--dry-run", "--json"]) == 0
    text = capsys.readouterr().out
    assert facts in text and f"# {place}: " in text
    assert set(json.loads(text.splitlines()[-1])["places"]) == {place}
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_of_a_run_says_its_recipe_and_settings(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        "eval-fid",
        str(finished_run),
        "--num",
        "20",
        "--seeds",
        "0,1",
        "--classes",
        "3,7",
        "--cfg",
        "2",
        "--dry-run",
    ]
    assert run(given) == 0
    text = capsys.readouterr().out
    assert "  cfg: 2.0\n" in text and "# parameters: total " in text
    assert "# images: 20\n# seeds: [0, 1]\n# classes: 2\n# features: inception\n# reference: digits\n" in text
    assert f"# results: {finished_run / 'eval'} (not there yet)\n" in text and not (finished_run / "eval").exists()


@pytest.mark.parametrize("command", ["sample", "eval-fid"])
def test_several_processes_are_not_started_for_it(
    command: str, finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("marcli.cli.launching.launch", lambda *given, **options: pytest.fail("started"))
    assert run([command, str(finished_run), "--gpus", "0", "--processes", "2", "--dry-run"]) == 0
    assert capsys.readouterr().out.count("# parameters: ") == 1


def test_an_evaluation_without_anything_to_compare_with_is_refused(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = finished_run / "weights.safetensors"
    assert run(["eval-fid", str(weights), "--dry-run"]) == 2
    assert "give --reference" in capsys.readouterr().err


def test_a_dry_run_refuses_what_the_evaluation_would(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["eval-fid", "--images", "digits", "--reference", "digits", "--dry-run"]
    assert run([*given, "--features", "nonsense"]) == 2
    assert "'nonsense' is neither inception" in capsys.readouterr().err
    assert run([*given, "--num", "2k"]) == 2
    assert "2,000 pictures, but digits holds 1,797" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "weights", "temperature"), [("mar-b", "raw", 0.95), ("mar-l", "raw", 0.95), ("dit-xl-2", "ema", 1.0)]
)
def test_nothing_is_downloaded_for_a_dry_run(
    name: str,
    weights: str,
    temperature: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Weights that a file does not hold are not promised."""
    monkeypatch.setenv("MARCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("marcli.sampling.load.find", lambda *given: pytest.fail("the file was looked for"))
    assert run(["sample", name, "--weights", "raw", "--cfg", "1", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert f"# pictures: samples/{name.replace('-', '_')}/{weights}-" in text
    assert f"  temperature: {temperature}\n" in text
    assert "would be downloaded from" in caplog.text
