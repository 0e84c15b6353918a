"""How many processes a command line means."""

import pytest
import typer

from marcli.cli import launching
from marcli.cli.app import run
from marcli.cli.options import sampling_overrides, split_overrides
from marcli.errors import UsageError
from marcli.runtime import accelerator


@pytest.mark.parametrize(
    ("there", "gpus", "processes", "expected"),
    [(0, "auto", 1, 1), (0, "auto", 2, 2), (4, "auto", 1, 4), (4, "2", 1, 2), (4, "0", 3, 3), (0, "0", 1, 1)],
)
def test_count(monkeypatch: pytest.MonkeyPatch, there: int, gpus: str, processes: int, expected: int) -> None:
    monkeypatch.setattr(accelerator, "visible_gpus", lambda: there)
    assert launching.count_processes(gpus=gpus, processes=processes) == expected


def test_cpu_processes_on_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "visible_gpus", lambda: 4)
    with pytest.raises(UsageError, match="add --gpus 0"):
        launching.count_processes(gpus="auto", processes=2)


def test_spread_starts_processes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(launching, "launch", lambda argv, num_processes: started.append((argv, num_processes)))
    monkeypatch.delenv("RANK", raising=False)
    launching.COMMAND_LINE.set(("train", "x"))
    launching.spread(gpus="0", processes=1)
    assert started == []
    with pytest.raises(typer.Exit):
        launching.spread(gpus="0", processes=2)
    assert started == [(("train", "x"), 2)]
    monkeypatch.setenv("RANK", "0")
    launching.spread(gpus="0", processes=2)
    assert len(started) == 1


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
@pytest.mark.parametrize("given", [["bench", "recipes/digits.yaml"], ["tokenize", "digits", "--tokenizer", "pixels"]])
def test_what_measures_one_process_refuses_several(given, variable, tmp_path, monkeypatch, capsys) -> None:
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for started, code in (("1", 0), ("2", 2)):
        monkeypatch.setenv(variable, started)
        assert run([*given, "--gpus", "0", "--out", str(tmp_path), "--dry-run"]) == code
    assert f"{given[0]} measures one device in one process: start it without" in capsys.readouterr().err


def test_arguments_are_names_or_overrides(tmp_path) -> None:
    odd = tmp_path / "lr=1"
    odd.mkdir()
    names, overrides = split_overrides(["runs/digits", "sample.cfg=3", str(odd)])
    assert (names, overrides) == (["runs/digits", str(odd)], ["sample.cfg=3"])
    assert split_overrides(None) == ([], [])
    assert sampling_overrides(steps=64, cfg=None, cfg_schedule="linear") == [
        "sample.steps=64",
        "sample.cfg_schedule=linear",
    ]
