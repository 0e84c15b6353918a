"""One picture to one square: geometry, colour modes, and what is refused."""

import errno
import io
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marcli.data import crop
from marcli.data.crop import BrokenImageError, center_crop, decode_square, picture_size


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(width: int, height: int, *, bands: int = 3) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, bands), np.uint8)
    return Image.fromarray(values if bands > 1 else values[..., 0])


def test_a_picture_of_the_right_size_is_not_touched() -> None:
    image = noise(16, 16)
    square = decode_square(encoded(image), image_size=16, channels=3)
    assert square.shape == (3, 16, 16)
    assert np.array_equal(square.transpose(1, 2, 0), np.asarray(image))


def test_halving_is_an_exact_box_average_and_the_centre_is_kept() -> None:
    image = noise(16 * 4, 16 * 4, bands=1)
    mean = np.asarray(image, dtype=float).reshape(16, 4, 16, 4).mean((1, 3))
    assert np.abs(np.asarray(center_crop(image, 16), dtype=float) - mean).max() <= 2  # rounded four times
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 200
    assert (np.asarray(center_crop(Image.fromarray(wide), 10)) == 200).all()


def test_between_the_halvings_one_bicubic_resize_is_used() -> None:
    image = noise(50, 70)
    expected = image.resize((25, 35), Image.Resampling.BOX).resize((20, 28), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(center_crop(image, 20)), np.asarray(expected.crop((0, 4, 20, 24))))


@pytest.mark.parametrize("size", [(3, 3), (5, 40), (41, 7), (31, 33), (64, 64)])
def test_any_shape_gives_the_square_asked_for(size) -> None:
    assert center_crop(noise(*size), 16).size == (16, 16)


def test_colour_modes_become_rgb() -> None:
    def middle(image: Image.Image, kind: str = "PNG", **options) -> list[int]:
        return decode_square(encoded(image, kind, **options), image_size=8, channels=3)[:, 4, 4].tolist()

    assert middle(Image.new("L", (8, 8), 90)) == [90, 90, 90]
    assert middle(Image.new("RGBA", (8, 8), (200, 10, 10, 255))) == [200, 10, 10]
    assert middle(Image.new("RGBA", (8, 8), (200, 10, 10, 0))) == [255, 255, 255]
    assert middle(Image.new("LA", (8, 8), (90, 255))) == [90, 90, 90]
    assert middle(Image.new("1", (8, 8), 1)) == [255, 255, 255]
    palette = Image.new("RGB", (8, 8), (12, 200, 40)).quantize(4)
    assert middle(palette) == [12, 200, 40]
    assert middle(palette, transparency=palette.getpixel((0, 0))) == [255, 255, 255]
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(np.array(middle(cmyk, "JPEG", quality=95)) - [255, 0, 0]).max() < 12


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    square = decode_square(encoded(Image.fromarray(ramp)), image_size=8, channels=1)
    assert np.array_equal(square[0], np.rint(ramp / 257).astype(np.uint8))


def test_grey_of_colour_is_luma() -> None:
    red = encoded(Image.new("RGB", (8, 8), (255, 0, 0)))
    assert decode_square(red, image_size=8, channels=1).tolist() == [[[76] * 8] * 8]


def test_the_orientation_tag_is_ignored() -> None:
    image, tags = noise(8, 8), Image.Exif()
    tags[0x0112] = 6
    turned = decode_square(encoded(image, exif=tags), image_size=8, channels=3)
    assert np.array_equal(turned.transpose(1, 2, 0), np.asarray(image))


def test_a_file_is_read_as_its_bytes_are(tmp_path) -> None:
    content = encoded(noise(20, 12), "JPEG")
    (tmp_path / "a.jpg").write_bytes(content)
    assert np.array_equal(
        decode_square(tmp_path / "a.jpg", image_size=8, channels=3), decode_square(content, image_size=8, channels=3)
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image"),
        (b"<html>not found</html>", "not an image"),
        (encoded(noise(64, 64), "JPEG")[:900], "truncated"),
        (encoded(noise(64, 64))[:3000], "truncated"),
        (encoded(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"), "no defined range"),
    ],
)
def test_what_cannot_be_read_has_a_reason(content, reason) -> None:
    with pytest.raises(BrokenImageError, match=reason):
        decode_square(content, image_size=8, channels=3)


@pytest.mark.skipif("AVIF" not in Image.registered_extensions().values(), reason="this Pillow has no AVIF")
def test_a_damaged_avif_has_a_reason() -> None:
    damaged = encoded(noise(64, 64), "AVIF").replace(b"iloc", b"none")
    with pytest.raises(BrokenImageError, match="Failed to decode"):
        decode_square(damaged, image_size=8, channels=3)


def test_a_reader_that_lacks_a_word_has_a_reason() -> None:
    content = bytearray(encoded(Image.new("F", (8, 8)), "SPIDER"))
    content[104:108] = np.array(1, dtype="<f4").tobytes()  # one of a stack that is not there: Pillow's AttributeError
    with pytest.raises(BrokenImageError, match="stkoffset"):
        decode_square(bytes(content), image_size=8, channels=3)
    with pytest.raises(BrokenImageError, match="stkoffset"):
        picture_size(bytes(content))


def test_a_missing_file_has_a_reason(tmp_path) -> None:
    with pytest.raises(BrokenImageError, match="does not exist"):
        decode_square(tmp_path / "gone.png", image_size=8, channels=3)
    with pytest.raises(BrokenImageError, match="does not exist"):
        picture_size(tmp_path / "gone.png")


@pytest.mark.parametrize("as_file", [True, False])
def test_a_size_that_cannot_be_read_has_a_reason(tmp_path, as_file) -> None:
    (tmp_path / "page.png").write_bytes(b"<html>not found</html>")
    with pytest.raises(BrokenImageError, match=r"^not an image file that Pillow knows$"):
        picture_size(tmp_path / "page.png" if as_file else b"<html>not found</html>")


@pytest.mark.parametrize("read", [picture_size, partial(decode_square, image_size=8, channels=3)])
def test_what_is_wrong_with_a_disk_is_not_wrong_with_a_picture(tmp_path, monkeypatch, read) -> None:
    def fail(*given, **options):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("builtins.open", fail)
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OSError, match="Input/output error"):
        read(tmp_path / "1.png")


def test_a_size_is_width_height_and_channels() -> None:
    assert picture_size(encoded(noise(12, 7))) == (12, 7, 3)
    assert picture_size(encoded(Image.new("I;16", (5, 4)))) == (5, 4, 1)


def test_a_picture_with_too_many_pixels_is_refused_before_decoding(monkeypatch) -> None:
    content = encoded(noise(100, 100))
    monkeypatch.setattr(crop, "PIXEL_LIMIT", 9_999)
    monkeypatch.setattr(crop, "center_crop", lambda *_: pytest.fail("decoded"))
    with pytest.raises(BrokenImageError, match="100x100 pixels is more than the limit of 9,999"):
        decode_square(content, image_size=8, channels=3)


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
def test_a_line_is_cropped_without_enlarging_all_of_it(monkeypatch, size) -> None:
    line = Image.new("L", size)
    line.paste(200, (size[0] // 2 - 3, size[1] // 2 - 3, size[0] // 2 + 3, size[1] // 2 + 3))
    enlarged = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda image, to, *rest: enlarged.append(to) or resize(image, to, *rest))
    square = decode_square(encoded(line), image_size=256, channels=1)
    assert (square == 200).all() and all(width * height < 1e7 for width, height in enlarged)
