"""`tokenizer:` - how images become latents. Facts here need no torch: geometry and vocabulary."""

from typing import Annotated, Literal, assert_never

from pydantic import Field

from marcli.recipe.section import Section

SCALE = "factor that brings latents to unit variance (1/std); null measures it on the training images"
WEIGHTS = "file, folder or hub id of the weights"


class PixelsTokenizer(Section):
    """The image itself in [-1, 1]; `model.patch_size` groups pixels into tokens."""

    kind: Literal["pixels"]
    scale: float | None = Field(default=None, gt=0, description=SCALE)


class KMeansTokenizer(Section):
    """A codebook of pixel patches learned by k-means on the training images; needs no weights."""

    kind: Literal["kmeans"]
    patch_size: int = Field(default=2, ge=1, description="side of a patch, in pixels")
    codebook_size: int = Field(default=256, ge=2, le=65536, description="number of codes")
    output: Literal["codes", "latents"] = Field(
        default="codes", description="'codes' for cross-entropy, 'latents' for the patch before quantisation"
    )
    scale: float | None = Field(default=None, gt=0, description=SCALE)


class KLTokenizer(Section):
    """KL-regularised autoencoder: `kl16` (16 channels, stride 16) or `kl8` (4 channels, stride 8)."""

    kind: Literal["kl16", "kl8"]
    weights: str | None = Field(default=None, description=WEIGHTS + "; null takes the published ones")
    scale: float | None = Field(default=None, gt=0, description=SCALE)


class VQTokenizer(Section):
    """Vector-quantised autoencoder `vq16`, stride 16: LDM's by default; taming's have 256 channels."""

    kind: Literal["vq16"]
    weights: str | None = Field(default=None, description=WEIGHTS + "; null takes the published ones")
    codebook_size: int = Field(default=16384, ge=2, le=65536, description="number of codes")
    channels: int = Field(default=8, ge=1, description="channels of a code's vector")
    output: Literal["codes", "latents"] = Field(
        default="codes", description="'codes' for cross-entropy, 'latents' for the vector before quantisation"
    )
    scale: float | None = Field(default=None, gt=0, description=SCALE)


class ConsistencyTokenizer(Section):
    """Stable Diffusion's encoder (4 channels, stride 8) with OpenAI's consistency decoder."""

    kind: Literal["consistency"]
    weights: str | None = Field(default=None, description=WEIGHTS + "; null takes the published ones")
    scale: float | None = Field(default=None, gt=0, description=SCALE)


class AutoencoderTokenizer(Section):
    """Any autoencoder of diffusers, by hub id or folder."""

    kind: Literal["autoencoder"]
    weights: str = Field(description=WEIGHTS)
    channels: int = Field(ge=1, description="channels of its latents")
    stride: int = Field(ge=1, description="image pixels per latent pixel")
    scale: float | None = Field(default=None, gt=0, description=SCALE)


Tokenizer = Annotated[
    PixelsTokenizer | KMeansTokenizer | KLTokenizer | VQTokenizer | ConsistencyTokenizer | AutoencoderTokenizer,
    Field(discriminator="kind"),
]
TAKES_GREY = (PixelsTokenizer, KMeansTokenizer)


class LatentShape(Section):
    """Geometry of the latents of one image: `channels` x `size` x `size`, or codes of a vocabulary."""

    channels: int
    size: int
    stride: int
    codebook_size: int | None


def latent_shape(tokenizer: Tokenizer, image_size: int, image_channels: int) -> LatentShape:
    """Return what `tokenizer` makes of an image; raises ValueError for a size or channels that it does not take."""
    codebook = None
    match tokenizer:
        case PixelsTokenizer():
            channels, stride = image_channels, 1
        case KMeansTokenizer():
            channels, stride = image_channels * tokenizer.patch_size**2, tokenizer.patch_size
            codebook = tokenizer.codebook_size if tokenizer.output == "codes" else None
        case KLTokenizer():
            channels, stride = (16, 16) if tokenizer.kind == "kl16" else (4, 8)
        case VQTokenizer():
            channels, stride = tokenizer.channels, 16
            codebook = tokenizer.codebook_size if tokenizer.output == "codes" else None
        case ConsistencyTokenizer():
            channels, stride = 4, 8
        case AutoencoderTokenizer():
            channels, stride = tokenizer.channels, tokenizer.stride
        case _:
            assert_never(tokenizer)
    if image_size % stride:
        raise ValueError(
            f"data.image_size is {image_size}, which tokenizer.kind {tokenizer.kind!r} cannot divide: "
            f"choose a multiple of {stride}"
        )
    if image_channels != 3 and not isinstance(tokenizer, TAKES_GREY):
        raise ValueError(
            f"data.channels is {image_channels}, but tokenizer.kind {tokenizer.kind!r} takes colour alone: set "
            "data.channels=3, in which grey images are grey"
        )
    if codebook is not None:
        channels = 1
    return LatentShape(channels=channels, size=image_size // stride, stride=stride, codebook_size=codebook)
