"""Both published layouts of DiT give the same tensors, under the names of our model."""

import argparse
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from marcli.errors import MarcliError
from marcli.model.backbone.dit import DiT
from marcli.model.build import build_model
from marcli.pretrained import dit
from marcli.pretrained.converted import convert_once
from marcli.pretrained.safe import assign_strictly
from marcli.recipe.reader import read_recipe, shipped_recipe
from marcli.runtime.skeleton import skeletons
from tests.reference.fill import fill

TINY = dit.DitArchitecture(width=24, depth=2, num_classes=5, places=16)


@pytest.fixture(autouse=True)
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dit, "PUBLISHED", {TINY: (), **dit.PUBLISHED})
    monkeypatch.setattr(dit, "DitArchitecture", lambda: TINY)


def by_authors() -> dict[str, Tensor]:
    arrays = fill({name: list(shape) for name, shape in dit.layout(TINY).items()})
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def by_diffusers() -> dict[str, Tensor]:
    """A state dict as diffusers' own model writes it, with the authors' values."""
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=5,
    )  # fmt: skip
    theirs = by_authors()
    state = {}
    for name in model.state_dict():
        block = name.split(".")[1]
        if "attn1.to_q" in name or "attn1.to_k" in name or "attn1.to_v" in name:
            joint = theirs[f"blocks.{block}.attn.qkv.{name.rsplit('.', 1)[1]}"]
            state[name] = joint.chunk(3)["qkv".index(name.split("to_")[1][0])]
            continue
        source = name
        for ours, authors in (
            ("pos_embed.proj", "x_embedder.proj"),
            (f"transformer_blocks.{block}.norm1.emb.timestep_embedder.linear_1", "t_embedder.mlp.0"),
            (f"transformer_blocks.{block}.norm1.emb.timestep_embedder.linear_2", "t_embedder.mlp.2"),
            (f"transformer_blocks.{block}.norm1.emb.class_embedder", "y_embedder"),
            (f"transformer_blocks.{block}.norm1.linear", f"blocks.{block}.adaLN_modulation.1"),
            (f"transformer_blocks.{block}.attn1.to_out.0", f"blocks.{block}.attn.proj"),
            (f"transformer_blocks.{block}.ff.net.0.proj", f"blocks.{block}.mlp.fc1"),
            (f"transformer_blocks.{block}.ff.net.2", f"blocks.{block}.mlp.fc2"),
            ("proj_out_1", "final_layer.adaLN_modulation.1"),
            ("proj_out_2", "final_layer.linear"),
        ):
            source = source.replace(ours, authors)
        state[name] = theirs[source].clone()
    model.load_state_dict(state, strict=True)
    return model.state_dict()


def test_both_layouts_give_the_same_tensors() -> None:
    authors, recipe, overrides = dit.convert(by_authors(), source="a.pt")
    diffusers, _, _ = dit.convert(by_diffusers(), source="b.bin")
    assert (recipe, overrides) == ("dit_xl_2", ())
    assert set(authors) == set(diffusers)
    for name, value in authors.items():
        assert torch.equal(value, diffusers[name]), name


@pytest.mark.parametrize(("side", "places"), [(256, 256), (512, 1024)])
def test_our_model_of_the_shipped_recipe_has_these_tensors(monkeypatch, side: int, places: int) -> None:
    monkeypatch.undo()
    architecture = dit.DitArchitecture(places=places)
    theirs = {name: torch.empty(shape, device="meta") for name, shape in dit.layout(architecture).items()}
    tensors, recipe, overrides = dit.convert(theirs, source="DiT-XL-2.pt")
    resolved = read_recipe(shipped_recipe(recipe), overrides)
    assert resolved.data.image_size == side
    with skeletons():
        model = build_model(resolved)
    assert {name: tuple(value.shape) for name, value in tensors.items()} == {
        name: tuple(value.shape) for name, value in model.state_dict().items()
    }
    if places == 256:  # the number the authors' training prints, fixed positions included
        assert sum(value.numel() for value in theirs.values()) == 675_129_632


def sines(values: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """sin and cos of values over width frequencies from 1 down to 1/10000."""
    angles = values[:, None] * torch.exp(-math.log(10000) * torch.arange(width) / width)  # rounded as published
    return angles.sin(), angles.cos()


def published_forward(weights: dict[str, Tensor], x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """DiT as its paper and code define it, straight from the authors' tensors (2 heads, 8x8 latents, 2x2 patches)."""

    def linear(name: str, values: Tensor) -> Tensor:
        return F.linear(values, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def modulated(values: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(values, (TINY.width,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    sin, cos = sines(t.float(), dit.NUM_FREQUENCIES // 2)
    condition = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", torch.cat([cos, sin], dim=1))))
    condition = F.silu(condition + weights["y_embedder.embedding_table.weight"][labels])
    rows, columns = (each.flatten().float() for each in torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"))
    positions = torch.cat([*sines(columns, TINY.width // 4), *sines(rows, TINY.width // 4)], dim=1)
    h = F.conv2d(x, weights["x_embedder.proj.weight"], weights["x_embedder.proj.bias"], stride=2)
    h = h.flatten(2).transpose(1, 2) + positions
    for block in ("blocks.0", "blocks.1"):
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = linear(f"{block}.adaLN_modulation.1", condition).chunk(
            6, 1
        )
        qkv = (
            linear(f"{block}.attn.qkv", modulated(h, shift_a, scale_a)).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        )
        attended = F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2)
        h = h + gate_a[:, None] * linear(f"{block}.attn.proj", attended)
        hidden = F.gelu(linear(f"{block}.mlp.fc1", modulated(h, shift_m, scale_m)), approximate="tanh")
        h = h + gate_m[:, None] * linear(f"{block}.mlp.fc2", hidden)
    out = linear("final_layer.linear", modulated(h, *linear("final_layer.adaLN_modulation.1", condition).chunk(2, 1)))
    patches = out.unflatten(2, (2, 2, 8)).unflatten(1, (4, 4))  # batch, row, column, row and column inside, channel
    return patches.permute(0, 5, 1, 3, 2, 4).reshape(len(x), 8, 8, 8)


def test_the_model_computes_what_the_published_one_does() -> None:
    tensors, _, _ = dit.convert(by_authors(), source="a.pt")
    model = DiT(
        channels=4, size=8, patch_size=2, num_classes=5, width=24, depth=2, heads=2, schedule="linear", label_drop=0.1
    )
    assign_strictly(model, tensors, source="a.pt")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 8, 8, generator=generator)
    t, labels = torch.tensor([0, 417, 999]), torch.tensor([2, 0, 5])
    expected = published_forward(by_authors(), x, t, labels)
    with torch.inference_mode():
        ours = model.eval().denoise(x.flatten(2).transpose(1, 2), t, labels)
    assert (ours.transpose(1, 2).unflatten(2, (8, 8)) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_faults_are_named_as_the_file_names_them() -> None:
    tensors = by_authors()
    del tensors["blocks.1.attn.qkv.bias"]
    tensors["final_layer.linear.weight"] = torch.zeros(3, 3)
    with pytest.raises(MarcliError) as error:
        dit.convert(tensors, source="a.pt")
    assert "1 missing: blocks.1.attn.qkv.bias [72]" in str(error.value)
    assert "final_layer.linear.weight [3, 3] where the model has [32, 24]" in str(error.value)
    tensors = by_diffusers()
    del tensors["transformer_blocks.1.attn1.to_k.bias"]
    tensors["gate"] = torch.zeros(1)
    with pytest.raises(MarcliError, match=r"1 missing: transformer_blocks\.1\.attn1\.to_k\.bias.*: gate \[1\]"):
        dit.convert(tensors, source="b.bin")


def test_blocks_with_different_embedders_are_refused() -> None:
    tensors = {name: value.clone() for name, value in by_diffusers().items()}
    tensors["transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"] += 1
    with pytest.raises(MarcliError, match="one embedder for all blocks"):
        dit.convert(tensors, source="b.bin")


def test_positions_may_be_in_the_file_or_not() -> None:
    with_positions, _, _ = dit.convert(by_authors(), source="a.pt")
    tensors = by_authors()
    del tensors["pos_embed"]
    without_positions, _, _ = dit.convert(tensors, source="a.pt")
    assert set(with_positions) == set(without_positions)


def test_a_checkpoint_of_the_authors_training_gives_both_sets(tmp_path, monkeypatch) -> None:
    """Their train.py writes {"model", "ema", "opt", "args"}; a published file has one set, the average."""
    monkeypatch.setenv("MARCLI_CACHE", str(tmp_path / "cache"))
    raw, averaged = by_authors(), {name: value + 1 for name, value in by_authors().items()}
    content = {"model": raw, "ema": averaged, "opt": {"state": {}}, "args": argparse.Namespace(model="DiT-XL/2")}
    torch.save(content, tmp_path / "0050000.pt")
    converted = convert_once(tmp_path / "0050000.pt")
    tensors = load_file(converted.weights)
    assert (converted.sets, converted.recipe) == (("ema", "raw"), "dit_xl_2")
    assert torch.equal(tensors["raw.transformer.proj_out_2.bias"], raw["final_layer.linear.bias"])
    assert torch.equal(tensors["ema.transformer.proj_out_2.bias"], averaged["final_layer.linear.bias"])
    torch.save({**content, "ema": {**averaged, "gate": torch.zeros(1)}}, tmp_path / "faulty.pt")
    with pytest.raises(MarcliError, match=r"faulty\.pt \(ema\).*gate \[1\]"):
        convert_once(tmp_path / "faulty.pt")
    torch.save(raw, tmp_path / "DiT-XL-2-256x256.pt")
    assert convert_once(tmp_path / "DiT-XL-2-256x256.pt").sets == ("ema",)
