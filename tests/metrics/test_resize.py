"""Resizing against torch-fidelity's TensorFlow emulation and clean-fid's resizers, in grey levels."""

import numpy as np
import pytest
import torch

from marcli.metrics.resize import resize_half_pixel, resize_pillow_bicubic, resize_tf1


def pictures(height: int, width: int) -> torch.Tensor:
    """Noise, the hardest case for a resizer, and a smooth ramp."""
    noise = torch.randint(0, 256, (1, 3, height, width), generator=torch.Generator().manual_seed(0))
    ramp = torch.linspace(0, 255, height * width).view(1, 1, height, width).expand(1, 3, -1, -1)
    return torch.cat([noise, ramp.long()]).to(torch.uint8)


@pytest.mark.parametrize("shape", [(256, 256), (32, 32), (64, 48), (299, 299), (512, 512)])
def test_tf1_agrees_with_torch_fidelity_to_a_hundredth_of_a_grey_level(shape):
    theirs = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    images = pictures(*shape)
    expected = theirs.interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(299, 299), align_corners=False)
    assert (resize_tf1(images, 299) - expected).abs().max() < 0.01


def test_half_pixel_is_another_operator():
    images = pictures(256, 256)
    difference = (resize_tf1(images, 299) - resize_half_pixel(images, 299))[0]
    assert 7 < difference.square().mean().sqrt() < 10  # 8.5 grey levels on noise


@pytest.mark.parametrize(("mode", "resize"), [("clean", resize_pillow_bicubic), ("legacy_pytorch", resize_half_pixel)])
@pytest.mark.parametrize("size", [64, 512])
@pytest.mark.filterwarnings("ignore")
def test_agrees_with_clean_fid(mode, resize, size):
    theirs = pytest.importorskip("cleanfid.resize").build_resizer(mode)
    images = pictures(size, size)
    expected = np.stack([theirs(image.permute(1, 2, 0).numpy()).transpose(2, 0, 1) for image in images])
    np.testing.assert_allclose(resize(images, 299).numpy(), expected, atol=1e-4)
