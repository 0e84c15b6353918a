"""VQ-16 against an independent implementation of the architecture, in float64 on filled weights.

The implementation below follows the published description (ResNet blocks with GroupNorm and swish, single-head
attention at the coarsest level, asymmetric padding before each strided convolution, nearest codebook entry) and works
on the published tensor names directly.
"""

import pytest
import torch
import torch.nn.functional as F

from marcli.errors import MarcliError
from marcli.recipe.tokenizer import LatentShape
from marcli.tokenizer.vq import WIDTHS, VQTokenizer, load_vq
from tests.reference.fill import fill

Tensors = dict[str, torch.Tensor]


def conv(w: Tensors, name: str, x: torch.Tensor, **options) -> torch.Tensor:
    return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **options)


def norm(w: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)


def block(w: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    h = conv(w, f"{name}.conv1", F.silu(norm(w, f"{name}.norm1", x)), padding=1)
    h = conv(w, f"{name}.conv2", F.silu(norm(w, f"{name}.norm2", h)), padding=1)
    return h + (conv(w, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in w else x)


def attention(w: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    h = norm(w, f"{name}.norm", x)
    q, k, v = (conv(w, f"{name}.{part}", h).flatten(2) for part in "qkv")
    weights = torch.softmax(torch.einsum("bcq,bck->bqk", q, k) / q.shape[1] ** 0.5, dim=-1)
    return x + conv(w, f"{name}.proj_out", torch.einsum("bqk,bck->bcq", weights, v).reshape(x.shape))


def middle(w: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    return block(w, f"{name}.block_2", attention(w, f"{name}.attn_1", block(w, f"{name}.block_1", x)))


def encode(w: Tensors, x: torch.Tensor, levels: int) -> torch.Tensor:
    h = conv(w, "encoder.conv_in", x, padding=1)
    for level in range(levels):
        for j in range(2):
            h = block(w, f"encoder.down.{level}.block.{j}", h)
            if level == levels - 1:
                h = attention(w, f"encoder.down.{level}.attn.{j}", h)
        if level < levels - 1:
            h = conv(w, f"encoder.down.{level}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2)
    h = F.silu(norm(w, "encoder.norm_out", middle(w, "encoder.mid", h)))
    return conv(w, "quant_conv", conv(w, "encoder.conv_out", h, padding=1))


def decode(w: Tensors, codes: torch.Tensor, levels: int) -> torch.Tensor:
    z = w["quantize.embedding.weight"][codes[:, 0]].movedim(-1, 1)
    h = middle(w, "decoder.mid", conv(w, "decoder.conv_in", conv(w, "post_quant_conv", z), padding=1))
    for level in reversed(range(levels)):
        for j in range(3):
            h = block(w, f"decoder.up.{level}.block.{j}", h)
            if level == levels - 1:
                h = attention(w, f"decoder.up.{level}.attn.{j}", h)
        if level:
            h = conv(w, f"decoder.up.{level}.upsample.conv", F.interpolate(h, scale_factor=2.0), padding=1)
    return conv(w, "decoder.conv_out", F.silu(norm(w, "decoder.norm_out", h)), padding=1)


def layout(widths: tuple[int, ...], z: int, embed: int, codes: int) -> dict[str, list[int]]:
    """Names and shapes of a VQGAN file of LDM and taming-transformers."""
    shapes: dict[str, list[int]] = {"quantize.embedding.weight": [codes, embed]}

    def add(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = list(shape), [shape[0]]

    def add_block(name: str, inside: int, outside: int) -> None:
        add(f"{name}.norm1", inside)
        add(f"{name}.conv1", outside, inside, 3, 3)
        add(f"{name}.norm2", outside)
        add(f"{name}.conv2", outside, outside, 3, 3)
        if inside != outside:
            add(f"{name}.nin_shortcut", outside, inside, 1, 1)

    def add_attention(name: str, width: int) -> None:
        add(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            add(f"{name}.{part}", width, width, 1, 1)

    deep, last = widths[-1], len(widths) - 1
    for side in ("encoder", "decoder"):
        add_block(f"{side}.mid.block_1", deep, deep)
        add_attention(f"{side}.mid.attn_1", deep)
        add_block(f"{side}.mid.block_2", deep, deep)
    add("encoder.conv_in", widths[0], 3, 3, 3)
    add("encoder.norm_out", deep)
    add("encoder.conv_out", z, deep, 3, 3)
    add("quant_conv", embed, z, 1, 1)
    add("post_quant_conv", z, embed, 1, 1)
    add("decoder.conv_in", deep, z, 3, 3)
    add("decoder.norm_out", widths[0])
    add("decoder.conv_out", 3, widths[0], 3, 3)
    for level, width in enumerate(widths):
        before, above = widths[max(level - 1, 0)], widths[min(level + 1, last)]
        for j in range(2):
            add_block(f"encoder.down.{level}.block.{j}", before if j == 0 else width, width)
        for j in range(3):
            add_block(f"decoder.up.{level}.block.{j}", above if j == 0 else width, width)
        if level < last:
            add(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
        if level > 0:
            add(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    for j in range(3):
        add_attention(f"decoder.up.{last}.attn.{j}", deep)
        if j < 2:
            add_attention(f"encoder.down.{last}.attn.{j}", deep)
    return shapes


def save_filled(path, widths: tuple[int, ...], z: int, embed: int, codes: int) -> Tensors:
    """Write an LDM-style file with a codebook near the filled encoder's outputs, so that many codes are used."""
    tensors = {name: torch.from_numpy(array) for name, array in fill(layout(widths, z, embed, codes)).items()}
    tensors["quantize.embedding.weight"] *= 2
    torch.save({"state_dict": tensors | {"loss.logvar": torch.zeros(())}}, path)
    return {name: tensor.double() for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("widths", "z", "embed", "codes", "side"),
    [
        pytest.param((32, 64), 8, 8, 512, 32, id="small"),
        pytest.param((32, 32, 64), 24, 16, 300, 32, id="small-taming"),
        pytest.param(WIDTHS, 8, 8, 16384, 32, id="ldm-vq-f16"),
    ],
)
def test_vq_matches_an_independent_implementation(tmp_path, widths, z, embed, codes, side) -> None:
    weights = save_filled(tmp_path / "model.ckpt", widths, z, embed, codes)
    network = load_vq(tmp_path / "model.ckpt", channels=embed, codebook_size=codes, widths=widths).double().eval()
    stride = 2 ** (len(widths) - 1)
    shape = LatentShape(channels=1, size=side // stride, stride=stride, codebook_size=codes)
    tokenizer = VQTokenizer(shape, scale=None, network=network)
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        expected = encode(weights, images, len(widths))
        found = network.encode(images).latents
        assert (found - expected).abs().max() < 1e-10

        distance = (expected.movedim(1, -1)[..., None, :] - weights["quantize.embedding.weight"]).square().sum(-1)
        expected_codes = distance.argmin(-1)[:, None]
        found_codes = tokenizer.quantise(found)
        assert torch.equal(found_codes, expected_codes)
        assert len(found_codes.unique()) > found_codes.numel() // 4  # else equal codes would say little

        reconstruction = decode(weights, expected_codes, len(widths))
        assert (tokenizer.reconstruct(found_codes) - reconstruction).abs().max() < 1e-10

        weights["decoder.up.0.block.1.conv1.weight"][0, 0] += 1e-3  # negative control
        assert (tokenizer.reconstruct(found_codes) - decode(weights, expected_codes, len(widths))).abs().max() > 1e-10


def test_latents_before_quantisation_decode_to_the_same_image_as_their_codes(tmp_path) -> None:
    save_filled(tmp_path / "model.ckpt", (32, 64), 8, 8, 512)
    network = load_vq(tmp_path / "model.ckpt", channels=8, codebook_size=512, widths=(32, 64)).eval()
    codes = VQTokenizer(LatentShape(channels=1, size=8, stride=2, codebook_size=512), scale=None, network=network)
    latents = VQTokenizer(LatentShape(channels=8, size=8, stride=2, codebook_size=None), scale=0.5, network=network)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    rows = latents.encode(images)
    assert rows.shape == (2, 8, 8, 8)
    assert codes.encode(images).dtype == torch.int64
    assert torch.equal(
        latents.decode(latents.sample(rows, None)), codes.decode(codes.sample(codes.encode(images), None))
    )


def test_a_codebook_of_another_size_names_the_keys_to_set(tmp_path) -> None:
    save_filled(tmp_path / "model.ckpt", (32, 64), 8, 8, 512)
    with pytest.raises(MarcliError, match=r"tokenizer.codebook_size=512 tokenizer.channels=8"):
        load_vq(tmp_path / "model.ckpt", channels=8, codebook_size=16384, widths=(32, 64))


def test_a_file_without_codebook_is_named(tmp_path) -> None:
    torch.save({"state_dict": {"encoder.conv_in.weight": torch.zeros(1)}}, tmp_path / "kl.ckpt")
    with pytest.raises(MarcliError, match=r"no vector-quantised autoencoder"):
        load_vq(tmp_path / "kl.ckpt", channels=8, codebook_size=512, widths=(32, 64))
