"""Plain lines where there is no terminal."""

import pytest

from marcli.runtime import progress as module
from marcli.runtime.progress import Progress


def test_plain_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with Progress(title="train", total=1_000, unit="step", shown=True, done=200) as progress:
        for _ in range(3):
            now[0] += 6
            progress.advance(24, loss="0.5")
        progress.say("[saved] here")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train: 248 of 1,000 step  4.0 step/s  0:03:08 left  loss 0.5"
    assert lines[1] == "[saved] here"
    assert len(lines) == 3 and lines[2].startswith("train: 272 of 1,000")


def test_the_last_line_comes_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with Progress(title="bench", total=2, unit="batches", shown=True) as progress:
        for _ in range(2):
            now[0] += 10
            progress.advance()
    assert [line.split(" batches")[0] for line in capsys.readouterr().err.splitlines()] == [
        "bench: 1 of 2",
        "bench: 2 of 2",
    ]


def test_slow_rates_read_as_seconds_and_other_processes_are_silent(monkeypatch, capsys) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    for shown in (True, False):
        with Progress(title="sample", total=2, unit="image", shown=shown) as progress:
            now[0] += 7200
            progress.advance()
            progress.say("x")
    out = capsys.readouterr()
    assert "7,200.0 s per image  2:00:00 left" in out.err.splitlines()[0]
    assert out.out == "" and out.err.count("x") == 1


def test_one_of_many_batches_is_a_batch(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with Progress(title="bench", total=2, unit="batches", shown=False) as progress:
        now[0] += 5
        progress.advance()
        assert "5.0 s per batch  0:00:05 left" in progress.line()
