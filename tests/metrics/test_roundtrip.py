"""What a tokenizer loses: figures against scikit-image's definitions, and latents of known spread."""

import numpy as np
import pytest
import torch

from marcli.errors import MarcliError
from marcli.metrics.features import pixel_extractor
from marcli.metrics.roundtrip import measure_round_trip, perplexity, psnr, ssim
from marcli.recipe.tokenizer import LatentShape
from marcli.tokenizer.base import Tokenizer
from marcli.tokenizer.pixels import PixelsTokenizer

CPU = torch.device("cpu")


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def test_psnr_is_that_of_the_squared_error() -> None:
    images = torch.full((3, 3, 8, 8), 100, dtype=torch.uint8)
    others = images.clone()
    others[1] += 10
    others[2, 0, 0, 0] += 12
    found = psnr(images, others)
    assert found[0] == float("inf")
    assert found[1].item() == pytest.approx(10 * np.log10(255**2 / 100))
    assert found[2].item() == pytest.approx(10 * np.log10(255**2 / (144 / 192)))


def test_ssim_equals_a_loop_over_windows() -> None:
    a, b = noise(1, 1, 13, 13), noise(1, 1, 13, 13, seed=1)
    b = ((a.int() + b.int()) // 2).to(torch.uint8)
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    x, y, values = a[0, 0].double().numpy(), b[0, 0].double().numpy(), []
    for i in range(3):
        for j in range(3):
            u, v = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mu, mv = (window * u).sum(), (window * v).sum()
            su, sv = (window * (u - mu) ** 2).sum(), (window * (v - mv) ** 2).sum()
            suv = (window * (u - mu) * (v - mv)).sum()
            values.append(
                (2 * mu * mv + 2.55**2) * (2 * suv + 7.65**2) / ((mu**2 + mv**2 + 2.55**2) * (su + sv + 7.65**2))
            )
    assert ssim(a, b).item() == pytest.approx(np.mean(values), rel=1e-9)
    assert ssim(a, a).item() == pytest.approx(1)


@pytest.mark.parametrize(("side", "size"), [(6, 5), (11, 11), (40, 11)])
def test_rows_then_columns_are_the_whole_window(side, size) -> None:
    a, b = (noise(2, 3, side, side, seed=seed).double() for seed in (2, 3))
    line = torch.exp(-((torch.arange(size) - size // 2).double() ** 2) / (2 * 1.5**2))
    window = torch.outer(line, line)[None, None] / line.sum() ** 2

    def average(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(values.flatten(0, 1)[:, None], window)

    ma, mb = average(a), average(b)
    va, vb, vab = average(a * a) - ma**2, average(b * b) - mb**2, average(a * b) - ma * mb
    expected = (2 * ma * mb + 2.55**2) * (2 * vab + 7.65**2) / ((ma**2 + mb**2 + 2.55**2) * (va + vb + 7.65**2))
    found = ssim(a.byte(), b.byte())
    torch.testing.assert_close(found, expected.unflatten(0, (2, 3)).mean((1, 2, 3, 4)), rtol=1e-10, atol=0)


@pytest.mark.parametrize("side", [4, 8, 9, 16])
def test_ssim_of_small_pictures_is_defined(side) -> None:
    images = noise(2, 3, side, side)
    assert ssim(images, images).tolist() == pytest.approx([1, 1])
    assert (ssim(images, noise(2, 3, side, side, seed=1)) < 0.7).all()


def test_perplexity_counts_equal_codes() -> None:
    assert perplexity(np.array([5, 5, 0, 5, 5])) == pytest.approx(4)
    assert perplexity(np.array([9, 0])) == pytest.approx(1)


class HalvedTokenizer(Tokenizer):
    """Latents of mean 0 and standard deviation 0.5 x 2 images wide; decoding returns the images' upper bits."""

    kind = "halved"
    has_posterior = True

    def encode(self, images):
        self.images = images
        generator = torch.Generator().manual_seed(1)
        mean = torch.randn((len(images), 1, 64, 64), generator=generator) * 0.3
        return torch.cat([mean, torch.full_like(mean, 0.4)], dim=1)

    def decode(self, latents):
        assert abs(latents.std() / self.scale - 0.3) < 0.02  # the mean, without posterior noise
        return self.images & 0xF0


def test_figures_of_a_known_tokenizer() -> None:
    tokenizer = HalvedTokenizer(LatentShape(channels=1, size=64, stride=1, codebook_size=None), scale=0.25)
    batches = [noise(5, 3, 64, 64, seed=seed) for seed in range(3)]
    trip, kept = measure_round_trip(tokenizer, batches, extractor=pixel_extractor(), device=CPU, keep=7)
    error = torch.cat([(batch & 0x0F).double().square().mean((1, 2, 3)) for batch in batches])
    assert trip.images == 15
    assert trip.psnr == pytest.approx((10 * torch.log10(255**2 / error)).mean().item())
    assert trip.latent_std == pytest.approx(0.5, rel=0.01)  # sqrt(0.3^2 + 0.4^2): the posterior's noise belongs to it
    assert trip.measured_scale == pytest.approx(2, rel=0.01)
    assert trip.scale == tokenizer.scale == 0.25
    assert trip.rfid > 0
    assert "pixels" in trip.features
    assert torch.equal(kept, torch.cat(batches)[:7] & 0xF0)


def test_an_exact_tokenizer_has_no_psnr_and_measures_its_scale() -> None:
    tokenizer = PixelsTokenizer(LatentShape(channels=3, size=8, stride=1, codebook_size=None), scale=None)
    images = noise(50, 3, 8, 8)
    trip, _ = measure_round_trip(tokenizer, [images], extractor=pixel_extractor(), device=CPU, keep=1)
    assert trip.psnr is None
    assert trip.ssim == pytest.approx(1)
    assert trip.rfid == pytest.approx(0, abs=1e-6)
    assert trip.scale == pytest.approx(1 / (images.double() / 127.5).std(unbiased=False).item())
    assert tokenizer.scale is None


def test_no_readable_image_is_an_error() -> None:
    tokenizer = PixelsTokenizer(LatentShape(channels=3, size=8, stride=1, codebook_size=None), scale=None)
    with pytest.raises(MarcliError, match="none of the images can be read"):
        measure_round_trip(tokenizer, [], extractor=None, device=CPU, keep=1)
