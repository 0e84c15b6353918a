"""Feature networks other than Inception: raw pixels, timm, TorchScript."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from marcli.errors import MarcliError, UsageError
from marcli.metrics.features import Extractor, build_extractor, merge_grey_channels
from marcli.runtime.atomic import sha256_file

BUILD = {
    "protocol": "legacy_tensorflow",
    "inception": None,
    "inception_sha256": None,
    "feature_weights": None,
    "device": torch.device("cpu"),
}


def pictures(count: int, size: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(3)).to(torch.uint8)


def test_pixels_are_in_the_units_of_the_digits():
    extractor = build_extractor("pixels", **BUILD)
    grey = pictures(5, 8)[:, :1]
    features = extractor(grey)
    assert features.shape == (5, 192)
    merged = merge_grey_channels(features)
    np.testing.assert_allclose(merged, grey.flatten(1).numpy() / 255 * 16, rtol=1e-6)
    assert merge_grey_channels(extractor(pictures(5, 8))).shape == (5, 192)
    with pytest.raises(UsageError, match="tiny pictures"):
        extractor(pictures(1, 64))


def test_timm_model_from_a_local_file(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("test_vit", pretrained=False, num_classes=1000).eval()
    path = tmp_path / "model.safetensors"
    save_file(model.state_dict(), path)
    extractor = build_extractor("timm:test_vit", **BUILD | {"feature_weights": path})
    images = pictures(2, 96)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    size = model.pretrained_cfg["input_size"][-1]
    resized = torch.nn.functional.interpolate(images.float(), (size, size), mode="bicubic", antialias=True)
    expected = model.forward_head(
        model.forward_features((resized.clamp(0, 255) / 255 - mean) / std), pre_logits=True
    ).detach()
    np.testing.assert_allclose(extractor(images), expected.numpy(), rtol=1e-4, atol=1e-5)
    assert len(extractor.weights_sha256) == 64 and extractor.classifier is None
    again = build_extractor("timm:test_vit", **BUILD | {"feature_weights": path})
    assert again.weights_sha256 == extractor.weights_sha256 == extractor.identity["weights_sha256"]
    state = model.state_dict()
    state["norm.bias"] = state["norm.bias"] + 1e-3
    save_file(state, path)
    other = build_extractor("timm:test_vit", **BUILD | {"feature_weights": path})
    assert other.weights_sha256 != extractor.weights_sha256


def test_dinov2_is_vit_l14_at_224_pixels(monkeypatch):
    timm = pytest.importorskip("timm")
    asked = {}

    def create(name, **options):
        asked.update(options, name=name)
        return timm.models.vision_transformer.test_vit()

    monkeypatch.setattr(timm, "create_model", create)
    extractor = build_extractor("dinov2", **BUILD)
    assert asked["name"] == "vit_large_patch14_dinov2.lvd142m" and asked["img_size"] == 224
    assert extractor.prepare(pictures(2, 32)).shape == (2, 3, 224, 224)
    assert extractor.protocol == "224 px bicubic, whole picture"


def test_torchscript_file(tmp_path):
    class MeanColour(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(2, 3))

    path = tmp_path / "colour.pt"
    torch.jit.save(torch.jit.script(MeanColour()), path)
    images, extractor = pictures(3, 16), build_extractor(str(path), **BUILD)
    np.testing.assert_allclose(extractor(images), images.float().mean((2, 3)).numpy(), rtol=1e-6)
    assert (extractor.name, extractor.weights_sha256) == ("colour.pt", sha256_file(path))


def test_unknown_networks_are_named(tmp_path):
    with pytest.raises(UsageError, match="neither inception, dinov2, pixels, timm:NAME nor a TorchScript file"):
        build_extractor("inceptoin", **BUILD)
    with pytest.raises(UsageError, match=r"timm has no model 'vit_huge_patch13'; it has for example .*vit"):
        build_extractor("timm:vit_huge_patch13", **BUILD)
    (tmp_path / "x.pt").write_text("no zip")
    with pytest.raises(MarcliError, match="is not a TorchScript file"):
        build_extractor(str(tmp_path / "x.pt"), **BUILD)
    with pytest.raises(UsageError, match="--feature-weights: there is no file"):
        build_extractor("timm:test_vit", **BUILD | {"feature_weights": tmp_path / "none"})


def test_networks_run_in_fp32_and_through_cudnn_whatever_is_around_them():
    def settings(images: torch.Tensor) -> torch.Tensor:
        cudnn, product = torch.backends.cudnn, images.mT @ images
        return torch.tensor([[cudnn.enabled, cudnn.allow_tf32, product.dtype == torch.float32]])

    extractor = Extractor("settings", "", None, torch.Tensor.float, settings, None, torch.device("cpu"))
    before = torch.backends.cudnn.allow_tf32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert extractor(pictures(1, 8)).tolist() == [[True, False, True]]
    assert torch.backends.cudnn.allow_tf32 == before
