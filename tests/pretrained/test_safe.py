"""Foreign files run nothing and are named when they are broken; tensors fit exactly or are named."""

import argparse
import os
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from marcli.errors import MarcliError
from marcli.pretrained.safe import assign_strictly, read_safetensors_file, read_torch_file


class Payload:
    """Unpickles into a shell command that leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def test_published_layout_with_a_namespace_is_read(tmp_path: Path) -> None:
    weight = torch.randn(3, 4)
    torch.save({"model": {"weight": weight}, "args": argparse.Namespace(lr=1e-4)}, tmp_path / "file.pth")
    content = read_torch_file(tmp_path / "file.pth")
    assert torch.equal(content["model"]["weight"], weight)
    assert content["args"].lr == 1e-4


def test_a_callback_class_as_key_becomes_an_empty_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint"]
    modules = [types.ModuleType(name) for name in names]
    for name, module in zip(names, modules, strict=True):
        monkeypatch.setitem(sys.modules, name, module)
    callback = type("ModelCheckpoint", (), {"__module__": names[-1], "attribute": 1})
    modules[-1].ModelCheckpoint = callback
    torch.save({"state_dict": {"w": torch.ones(2)}, "callbacks": {callback: {"best": 0.5}}}, tmp_path / "file.ckpt")
    content = read_torch_file(tmp_path / "file.ckpt")
    assert torch.equal(content["state_dict"]["w"], torch.ones(2))
    (key,) = content["callbacks"]
    assert key is not callback and not hasattr(key, "attribute")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["top", "namespace", "state dict"])
def test_a_payload_is_refused_without_running(tmp_path: Path, zipped: bool, place: str) -> None:
    trace = tmp_path / "trace"
    content = {
        "top": {"model": {}, "payload": Payload(trace)},
        "namespace": {"model": {}, "args": argparse.Namespace(hidden=Payload(trace))},
        "state dict": {"model": {"weight": Payload(trace)}},
    }[place]
    torch.save(content, tmp_path / "file.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(MarcliError, match=r"refused.*posix\.system"):
        read_torch_file(tmp_path / "file.pth")
    assert not trace.exists()
    torch.load(tmp_path / "file.pth", weights_only=False)  # the payload does run where it is allowed to
    assert trace.exists()


def test_a_bare_pickle_with_a_payload_is_refused_without_running(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "file.pth").write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(MarcliError):
        read_torch_file(tmp_path / "file.pth")
    assert not trace.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_named(tmp_path: Path, zipped: bool, share: float) -> None:
    path = tmp_path / "file.pth"
    torch.save({"model": {"weight": torch.zeros(1000)}}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(MarcliError, match=r"file\.pth.*again"):
        read_torch_file(path)


@pytest.mark.parametrize("content", [b"<!doctype html>", b"hello " * 9, bytes(64), b"PK\x03\x04" + bytes(64)])
def test_other_content_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(MarcliError, match=r"file\.pth"):
        read_torch_file(tmp_path / "file.pth")


def test_something_else_than_a_mapping_is_named(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "file.pth")
    with pytest.raises(MarcliError, match="holds a list"):
        read_torch_file(tmp_path / "file.pth")


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MarcliError, match="no weights file"):
        read_torch_file(tmp_path / "file.pth")


def test_safetensors_with_metadata_and_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file({"a": torch.arange(100.0)}, path, metadata={"step": "7"})
    tensors, metadata = read_safetensors_file(path)
    assert torch.equal(tensors["a"], torch.arange(100.0))
    assert metadata == {"step": "7"}
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(MarcliError, match=r"file\.safetensors is not a complete"):
        read_safetensors_file(path)


def test_tensors_are_assigned_to_a_module_on_the_meta_device() -> None:
    source = nn.Linear(3, 2)
    with torch.device("meta"):
        target = nn.Linear(3, 2)
    assign_strictly(target, {name: value.double() for name, value in source.state_dict().items()}, source="x.pth")
    assert target.weight.dtype == torch.float32 and target.weight.requires_grad
    assert torch.equal(target(torch.ones(1, 3)), source(torch.ones(1, 3)))


def test_each_missing_extra_and_misshapen_tensor_is_named_and_nothing_is_assigned() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    tensors = {name: torch.zeros_like(value) for name, value in before.items()}
    del tensors["0.bias"]
    tensors["gate"] = torch.zeros(5)
    tensors["1.weight"] = torch.zeros(2, 7)
    tensors["1.bias"] = "text"
    with pytest.raises(MarcliError) as error:
        assign_strictly(module, tensors, source="x.pth")
    message = str(error.value)
    assert "x.pth" in message
    assert "1 missing: 0.bias [2]" in message
    assert "1 not of this model: gate [5]" in message
    assert "2 of another shape: 1.weight [2, 7] where the model has [2, 2], 1.bias (a str)" in message
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
