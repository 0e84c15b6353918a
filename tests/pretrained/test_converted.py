"""A foreign file is converted once, whole or not at all, and neither side can change unseen."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from marcli.errors import MarcliError
from marcli.pretrained.converted import convert_once
from marcli.pretrained.official_mar import SHIPPED, our_name
from tests.pretrained.checkpoints import TINY, filled, save_checkpoint


@pytest.fixture(scope="module")
def raw() -> dict[str, Tensor]:
    return filled(TINY)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(SHIPPED, "tiny", TINY)
    monkeypatch.setenv("MARCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_both_sets_of_weights_come_through_and_back(tmp_path: Path, raw: dict[str, Tensor]) -> None:
    averaged = {name: value + 1 for name, value in raw.items()}
    converted = convert_once(save_checkpoint(tmp_path / "checkpoint-last.pth", raw, averaged))
    tensors = load_file(converted.weights)
    assert converted.sets == ("ema", "raw")
    assert len(tensors) == 2 * len(raw)
    for name, value in raw.items():
        assert torch.equal(tensors[f"raw.{our_name(name)}"], value)
        assert torch.equal(tensors[f"ema.{our_name(name)}"], averaged[name])


def test_a_second_use_converts_nothing(tmp_path: Path, raw: dict[str, Tensor]) -> None:
    path = save_checkpoint(tmp_path / "checkpoint-last.pth", raw, raw)  # the two share their storage
    first = convert_once(path)
    written = first.weights.stat().st_mtime_ns
    renamed = path.rename(tmp_path / "elsewhere.pth")
    assert convert_once(renamed) == first
    assert first.weights.stat().st_mtime_ns == written


def test_processes_that_ask_together_convert_once(tmp_path: Path, raw: dict[str, Tensor], caplog) -> None:
    path = save_checkpoint(tmp_path / "checkpoint-last.pth", raw, raw)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(convert_once, [path] * 8))
    assert all(answer == answers[0] for answer in answers)
    assert caplog.text.count("Converting") == 1


def test_a_damaged_conversion_is_made_anew(tmp_path: Path, raw: dict[str, Tensor]) -> None:
    path = save_checkpoint(tmp_path / "checkpoint-last.pth", raw, raw)
    first = convert_once(path)
    good = first.weights.read_bytes()
    flipped = bytearray(good)
    flipped[-5] ^= 1
    first.weights.write_bytes(flipped)
    assert convert_once(path).weights.read_bytes() == good
    (first.weights.parent / "record.json").write_text("{}")
    assert convert_once(path) == first


def test_a_changed_source_is_another_conversion(tmp_path: Path, raw: dict[str, Tensor]) -> None:
    path = tmp_path / "checkpoint-last.pth"
    first = convert_once(save_checkpoint(path, raw, raw))
    changed = {name: value + 1 for name, value in raw.items()}
    second = convert_once(save_checkpoint(path, changed, changed))
    assert second.weights != first.weights
    assert torch.equal(load_file(second.weights)["raw.null_class"], changed["fake_latent"])


def test_a_mirror_with_one_set_of_weights(tmp_path: Path, raw: dict[str, Tensor]) -> None:
    save_file(raw, tmp_path / "mar-base.safetensors")
    converted = convert_once(tmp_path / "mar-base.safetensors")
    assert converted.sets == ("raw",)
    assert torch.equal(load_file(converted.weights)["raw.null_class"], raw["fake_latent"])


@pytest.mark.parametrize("where", ["model", "model_ema"])
def test_a_fault_in_either_set_is_named_and_leaves_nothing(
    tmp_path: Path, cache: Path, raw: dict[str, Tensor], where: str
) -> None:
    faulty = {**raw, "mask_token": torch.zeros(1, 2, 24)}
    sets = (faulty, raw) if where == "model" else (raw, faulty)
    path = save_checkpoint(tmp_path / "checkpoint-last.pth", *sets)
    with pytest.raises(MarcliError, match=rf"checkpoint-last\.pth \({where}\).*mask_token \[1, 2, 24\]"):
        convert_once(path)
    assert not list(cache.rglob("*.safetensors"))


def test_values_that_are_not_finite_are_named(tmp_path: Path, raw: dict[str, Tensor]) -> None:
    broken = {**raw, "z_proj.bias": torch.full((24,), float("nan"))}
    with pytest.raises(MarcliError, match=r"not finite.*ema\.backbone\.token_embed\.bias"):
        convert_once(save_checkpoint(tmp_path / "checkpoint-last.pth", raw, broken))


def test_a_payload_in_the_command_line_is_refused_without_running(tmp_path: Path, raw: dict[str, Tensor]) -> None:
    trace = tmp_path / "trace"

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {trace}",)

    path = save_checkpoint(tmp_path / "checkpoint-last.pth", raw, raw, hidden=Payload())
    with pytest.raises(MarcliError, match="Nothing of it was run"):
        convert_once(path)
    assert not trace.exists()


def test_an_autoencoder_is_sent_to_its_place(tmp_path: Path) -> None:
    torch.save({"model": {"encoder.conv_in.weight": torch.zeros(1)}}, tmp_path / "kl16.ckpt")
    with pytest.raises(MarcliError, match=r"neither a MAR nor a DiT.*tokenizer\.weights"):
        convert_once(tmp_path / "kl16.ckpt")


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MarcliError, match="no weights file"):
        convert_once(tmp_path / "absent.pth")
