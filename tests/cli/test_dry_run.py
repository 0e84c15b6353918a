"""`--dry-run`: what would happen, in words and as JSON, with nothing written."""

import json
from pathlib import Path

import pytest

from marcli.cli.app import run

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


def test_a_training_says_its_work(capsys: pytest.CaptureFixture[str]) -> None:
    """Forward and backward of 15 % of the tokens in the encoder, all in the decoder and four draws in the head."""
    run(["train", "recipes/mar_b.yaml", "--dry-run", "--json"])
    flops = json.loads(capsys.readouterr().out.splitlines()[-1])["flops_per_image"]
    encoder, decoder, head = 12 * 85.1e6 / 12 * (64 + 34), 12 * 85.1e6 / 12 * 320, 4 * 222 * 35.7e6
    assert flops == pytest.approx(6 * (encoder + decoder + head), rel=0.15)
