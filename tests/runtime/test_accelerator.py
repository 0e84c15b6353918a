"""Devices and ranks: what is asked for is what runs, or an error says why not."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from marcli.errors import MarcliError, UsageError
from marcli.runtime import accelerator
from marcli.runtime.accelerator import count_gpus, start_processes

START = "launch(sys.argv[1:], num_processes=2, module='two')"
TWO = """
import sys, torch
from pathlib import Path
from marcli.runtime.accelerator import start_processes
processes = start_processes(precision="auto", gpus="0")
total = processes.accelerator.reduce(torch.tensor(processes.rank + 1.0), reduction="sum").item()
facts = (processes.world_size, processes.is_main, total, processes.any(processes.rank == 1), processes.any(False))
Path(sys.argv[1], f"facts-{processes.rank}").write_text(repr(facts))
"""


def test_two_cpu_processes_find_each_other(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(TWO)
    code = f"import sys; from marcli.runtime.launch import launch; {START}"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=env, timeout=240, check=False, capture_output=True
    )
    assert done.returncode == 0 and b"terminate" not in done.stderr
    assert (tmp_path / "facts-0").read_text() == "(2, True, 3.0, True, False)"
    assert (tmp_path / "facts-1").read_text() == "(2, False, 3.0, True, False)"


def test_one_process_twice_with_other_settings() -> None:
    for precision in ("fp32", "bf16", "auto"):
        processes = start_processes(precision=precision, gpus="0")
        assert (processes.rank, processes.world_size, processes.device.type) == (0, 1, "cpu")
        assert processes.precision == ("bf16" if precision == "bf16" else "fp32")
        assert processes.any(True) and not processes.any(False)


@pytest.mark.parametrize(
    ("has_it", "precision", "lines"), [(False, "bf16", 1), (True, "bf16", 0), (False, "fp32", 0), (False, "auto", 0)]
)
def test_emulated_bf16_is_said(has_it, precision, lines, monkeypatch, caplog) -> None:
    monkeypatch.setattr(accelerator, "cpu_has_bf16", lambda: has_it)
    with caplog.at_level(logging.WARNING, logger="marcli"):
        start_processes(precision=precision, gpus="0")
    assert [record.message for record in caplog.records if "emulates" in record.message] == (
        ["this CPU has no instructions for bf16 and emulates it, which is slower than --precision fp32"] * lines
    )


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "visible_gpus", lambda: 2)
    assert [count_gpus(text) for text in ("auto", "0", "2")] == [2, 0, 2]
    for text, words in (("3", r"more GPUs than this machine shows \(2\)"), ("-1", "give auto"), ("two", "give auto")):
        with pytest.raises(UsageError, match=words):
            count_gpus(text)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match="process 2 of this machine has no GPU"):
        start_processes(precision="fp32", gpus="auto")


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("ACCELERATE_USE_FSDP", "true", "FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "DEEPSPEED"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "MEGATRON_LM"),
        ("ACCELERATE_DYNAMO_BACKEND", "EAGER", r"dynamo \(EAGER\)"),
    ],
)
def test_sharded_and_compiled_models_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, what: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"accelerate was told to use {what}"):
        start_processes(precision="fp32", gpus="0")


def test_the_others_wait_longer_than_one_works_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {}

    def note(**given: object) -> None:
        settings.update(given)
        raise KeyboardInterrupt

    monkeypatch.setattr(accelerator, "Accelerator", note)
    with pytest.raises(KeyboardInterrupt):
        start_processes(precision="fp32", gpus="0")
    assert settings["kwargs_handlers"][0].timeout.total_seconds() == 2 * 3600


def test_srun_may_show_every_process_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(**settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(accelerator, "visible_gpus", lambda: 1)
    monkeypatch.setattr(accelerator, "Accelerator", reached)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in (("STEP_NUM_TASKS", "2"), ("PROCID", "1"), ("LOCALID", "1"), ("STEP_NODELIST", "localhost")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(KeyboardInterrupt):
        start_processes(precision="fp32", gpus="auto")
    with pytest.raises(UsageError, match="process 1 of this machine has no GPU"):  # as under torchrun: RANK is set
        start_processes(precision="fp32", gpus="auto")


def test_world_size_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Alone:
        num_processes = 1

    monkeypatch.setattr(accelerator, "Accelerator", lambda **settings: Alone())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MarcliError, match=r"WORLD_SIZE is 2, but 1 process"):
        start_processes(precision="fp32", gpus="0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="only where there is no GPU")
def test_auto_means_the_cpu_without_a_gpu() -> None:
    if not torch.backends.mps.is_available():
        assert start_processes(precision="auto", gpus="auto").device.type == "cpu"
