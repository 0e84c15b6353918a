"""One encoded picture to one square of bytes: decode, convert, ADM centre crop.

Decided here, once, for every command:
- The crop is the one of ADM (guided-diffusion), which MAR and DiT use: halve with a box filter while the short side
  is at least twice the target, then one bicubic resize, then the centre.
- EXIF orientation is ignored, as in the published code.
- Transparency is laid over white; CMYK and palettes become RGB; 16-bit grey is scaled to 8 bits.
- A picture with more pixels than Pillow's own warning limit is refused before it is decoded.
- Of a picture many times longer than wide the middle is taken first: enlarging a line of 1x30000 needs gigabytes.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

PIXEL_LIMIT = 89_478_485  # Pillow warns from here on; a 64-bit RGB picture of that size is 256 MiB
LONGEST = 64  # long side over short side
BROKEN = (  # what Pillow's readers raise when a file makes no sense
    OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError, RuntimeError, AttributeError
)  # fmt: skip


class BrokenImageError(Exception):
    """A picture that cannot be read; the text is the reason, without the picture's name."""


def decode_square(encoded: bytes | Path, *, image_size: int, channels: int) -> np.ndarray:
    """Decode one picture and crop it.

    Args:
        encoded: the file's bytes, or where it lies
        image_size: side of the square, in pixels
        channels: 1 (grey) or 3 (RGB)

    Returns:
        uint8 array [channels, image_size, image_size]

    Raises:
        BrokenImageError: not a picture, truncated, too large, or of a mode without a defined range
        OSError, MemoryError: the machine failed, not the picture
    """
    with _reasons():
        content = encoded if isinstance(encoded, bytes) else encoded.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            if width * height > PIXEL_LIMIT:
                raise BrokenImageError(f"{width}x{height} pixels is more than the limit of {PIXEL_LIMIT:,}")
            image.load()
            array = np.asarray(center_crop(convert(image, channels), image_size))
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def picture_size(encoded: bytes | Path) -> tuple[int, int, int]:
    """Return a picture's width and height in pixels and its channels, 1 for grey ones; raises as `decode_square`."""
    with _reasons(), Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
        return *image.size, 1 if image.mode in ("1", "L") or image.mode.startswith("I") else 3


@contextmanager
def _reasons() -> Iterator[None]:
    """Raise BrokenImageError with the reason for what is wrong with a picture, and let pass what is with a disk."""
    try:
        yield
    except UnidentifiedImageError:
        raise BrokenImageError("not an image file that Pillow knows") from None
    except Image.DecompressionBombError:
        raise BrokenImageError(f"more pixels than the limit of {PIXEL_LIMIT:,}") from None
    except FileNotFoundError:
        raise BrokenImageError("the file does not exist") from None
    except IsADirectoryError:
        raise BrokenImageError("a folder, not a file") from None
    except BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:  # Pillow's own have none
            raise
        raise BrokenImageError(str(error) or type(error).__name__) from None


def convert(image: Image.Image, channels: int) -> Image.Image:
    """Return `image` as 8-bit grey (channels 1) or RGB (channels 3); raises BrokenImageError."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode == "F":
        raise BrokenImageError("floating point pixels have no defined range")
    if image.mode.startswith("I"):
        image = _to_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits, which Pillow would clip."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise BrokenImageError("32-bit pixels have no defined range")
    if image.mode != "I" or values.max() > 255:
        values = (values + 128) // 257
    return Image.fromarray(values.astype(np.uint8))


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's centre crop of an 8-bit image to `size` x `size` pixels."""
    width, height = (min(side, LONGEST * min(image.size)) for side in image.size)
    if (width, height) != image.size:
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
