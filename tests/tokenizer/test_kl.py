"""KL-16 against the reference numbers of the published code, and files that do not fit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from marcli.errors import MarcliError
from marcli.recipe.tokenizer import LatentShape
from marcli.tokenizer.architecture import AutoencoderArchitecture, load_published
from marcli.tokenizer.kl import ARCHITECTURES, AutoencoderKL, KLTokenizer, load_kl
from tests.reference.fill import fill

REFERENCE = Path(__file__).parent.parent / "reference"
TOLERANCE = 1e-5  # of the largest value
SMALL = AutoencoderArchitecture(widths=(32, 64), latent_channels=4, attention=True, decoder_attention=False)


def save_ckpt(path: Path, tensors: dict, container: str = "model") -> Path:
    torch.save({container: tensors, "epoch": 1}, path)
    return path


def small_layout(*, decoder_attention: bool) -> dict[str, list[int]]:
    """Names and shapes of a small file in the published layout, written out by the rule of its authors."""
    layout: dict[str, list[int]] = {}

    def conv(name: str, inside: int, outside: int, size: int) -> None:
        layout[f"{name}.weight"], layout[f"{name}.bias"] = [outside, inside, size, size], [outside]

    def norm(name: str, width: int) -> None:
        layout[f"{name}.weight"], layout[f"{name}.bias"] = [width], [width]

    def block(name: str, inside: int, outside: int) -> None:
        norm(f"{name}.norm1", inside)
        conv(f"{name}.conv1", inside, outside, 3)
        norm(f"{name}.norm2", outside)
        conv(f"{name}.conv2", outside, outside, 3)
        if inside != outside:
            conv(f"{name}.nin_shortcut", inside, outside, 1)

    def attention(name: str, width: int) -> None:
        norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", width, width, 1)

    def middle(name: str) -> None:
        block(f"{name}.block_1", 64, 64)
        attention(f"{name}.attn_1", 64)
        block(f"{name}.block_2", 64, 64)

    conv("encoder.conv_in", 3, 32, 3)
    for j in range(2):
        block(f"encoder.down.0.block.{j}", 32, 32)
        block(f"encoder.down.1.block.{j}", 32 if j == 0 else 64, 64)
        attention(f"encoder.down.1.attn.{j}", 64)
    conv("encoder.down.0.downsample.conv", 32, 32, 3)
    middle("encoder.mid")
    norm("encoder.norm_out", 64)
    conv("encoder.conv_out", 64, 8, 3)
    conv("quant_conv", 8, 8, 1)
    conv("post_quant_conv", 4, 4, 1)
    conv("decoder.conv_in", 4, 64, 3)
    middle("decoder.mid")
    for j in range(3):
        block(f"decoder.up.1.block.{j}", 64, 64)
        block(f"decoder.up.0.block.{j}", 64 if j == 0 else 32, 32)
        if decoder_attention:
            attention(f"decoder.up.1.attn.{j}", 64)
    conv("decoder.up.1.upsample.conv", 64, 64, 3)
    norm("decoder.norm_out", 32)
    conv("decoder.conv_out", 32, 3, 3)
    return layout


def filled(layout: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in fill(layout).items()}


def relative_error(found: torch.Tensor, wanted: np.ndarray) -> float:
    return float(np.abs(found.detach().numpy() - wanted).max() / np.abs(wanted).max())


@pytest.fixture(scope="module")
def kl16_tensors() -> dict[str, torch.Tensor]:
    return filled(json.loads((REFERENCE / "kl16_layout.json").read_text()))


@pytest.fixture(scope="module")
def kl16_path(kl16_tensors, tmp_path_factory) -> Path:
    return save_ckpt(tmp_path_factory.mktemp("kl16") / "kl16.ckpt", kl16_tensors)


def test_kl16_has_the_published_number_of_parameters(kl16_path) -> None:
    network = load_kl(kl16_path, architecture=ARCHITECTURES["kl16"])
    assert sum(parameter.numel() for parameter in network.parameters()) == 66_456_019


def test_kl16_parity_with_the_published_code_and_its_negative_control(kl16_path, kl16_tensors) -> None:
    reference = np.load(REFERENCE / "kl16_filled.npz")
    image, moments = torch.from_numpy(reference["image"]), torch.from_numpy(reference["moments"])
    network = load_kl(kl16_path, architecture=ARCHITECTURES["kl16"]).eval()
    assert relative_error(network.encode(image).latent_dist.parameters, reference["moments"]) < TOLERANCE
    assert relative_error(network.decode(moments[:, :16]).sample, reference["reconstruction"]) < TOLERANCE

    up = network.decoder.up_blocks  # what a mapping that does not reverse the decoder's levels would do
    up[0].resnets[0], up[0].resnets[1] = up[0].resnets[1], up[0].resnets[0]
    network.encoder.mid_block.attentions[0].to_q.bias.data += 0.3
    assert relative_error(network.encode(image).latent_dist.parameters, reference["moments"]) > TOLERANCE
    assert relative_error(network.decode(moments[:, :16]).sample, reference["reconstruction"]) > TOLERANCE


def test_rows_hold_mean_and_standard_deviation(tmp_path) -> None:
    path = save_ckpt(tmp_path / "small.pth", filled(small_layout(decoder_attention=False)))
    network = load_kl(path, architecture=SMALL).eval()
    shape = LatentShape(channels=4, size=8, stride=2, codebook_size=None)
    tokenizer = KLTokenizer(shape, kind="kl16", scale=0.5, network=network).eval()
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    rows = tokenizer.encode(images)
    moments = network.encode(images.float() / 127.5 - 1).latent_dist.parameters
    torch.testing.assert_close(rows[:, :4], moments[:, :4])
    torch.testing.assert_close(rows[:, 4:], moments[:, 4:].mul(0.5).exp())
    noise = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(tokenizer.sample(rows, noise), 0.5 * (rows[:, :4] + rows[:, 4:] * noise))
    torch.testing.assert_close(tokenizer.sample(rows, None), 0.5 * rows[:, :4])
    decoded = network.decode(rows[:, :4]).sample
    expected = ((decoded + 1) / 2 * 255).round().clamp(0, 255).byte()
    assert (tokenizer.decode(0.5 * rows[:, :4]).int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("decoder_attention", [True, False])
def test_decoder_attention_follows_the_file(tmp_path, decoder_attention) -> None:
    path = save_ckpt(tmp_path / "small.ckpt", filled(small_layout(decoder_attention=decoder_attention)), "state_dict")
    network = load_kl(path, architecture=SMALL)
    assert hasattr(network.decoder.up_blocks[0], "attentions") == decoder_attention


def test_training_losses_in_the_file_are_left_out(tmp_path) -> None:
    tensors = filled(small_layout(decoder_attention=True)) | {"loss.logvar": torch.zeros(())}
    load_kl(save_ckpt(tmp_path / "small.ckpt", tensors, "state_dict"), architecture=SMALL)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("decoder.up.0.block.2.conv1.weight"), "missing: decoder.up.0.block.2.conv1.weight"),
        (lambda t: t.update({"encoder.spare": torch.zeros(3)}), "not of this model: encoder.spare"),
        (lambda t: t.update({"encoder.conv_in.bias": torch.zeros(7)}), "another shape: encoder.conv_in.bias"),
        (lambda t: t.update({"encoder.mid.attn_1.q.weight": torch.zeros(64, 64)}), "encoder.mid.attn_1.q.weight"),
    ],
)
def test_a_file_that_does_not_fit_names_the_tensor(tmp_path, change, named) -> None:
    tensors = filled(small_layout(decoder_attention=False))
    change(tensors)
    with pytest.raises(MarcliError, match=named):
        load_published(save_ckpt(tmp_path / "w.ckpt", tensors), network_class=AutoencoderKL, architecture=SMALL)


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path) -> None:
    class Attack:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model": Attack()}, tmp_path / "attack.ckpt")
    with pytest.raises(MarcliError, match="would run code"):
        load_kl(tmp_path / "attack.ckpt", architecture=SMALL)
    assert not (tmp_path / "ran").exists()


def test_a_diffusers_folder_is_read_and_one_of_other_sizes_refused(tmp_path) -> None:
    published = save_ckpt(tmp_path / "small.pth", filled(small_layout(decoder_attention=False)))
    network = load_kl(published, architecture=SMALL)
    network.save_pretrained(tmp_path / "folder")
    again = load_kl(tmp_path / "folder", architecture=SMALL)
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    with pytest.raises(MarcliError, match=r"tokenizer.kind autoencoder"):
        load_kl(tmp_path / "folder", architecture=ARCHITECTURES["kl8"])
