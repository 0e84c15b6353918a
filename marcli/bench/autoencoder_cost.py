"""Operations of the convolutional autoencoders, counted from their published layouts.

Plain arithmetic on channel lists, no torch, so that a recipe is priced without building a model.
"""

from dataclasses import dataclass

from marcli.recipe.schema import Recipe
from marcli.recipe.tokenizer import KLTokenizer, KMeansTokenizer, PixelsTokenizer, VQTokenizer


@dataclass(frozen=True)
class Layout:
    """LDM's autoencoder: one channel count per resolution, the finest first."""

    channels: tuple[int, ...]
    latent_channels: int
    moments: int  # channels out of the encoder: twice the latents for a Gaussian, the latents for a codebook
    encoder_attention: bool  # at the coarsest level; the middle block always has one
    decoder_attention: bool
    codebook_size: int  # 0 without a codebook


KL16 = Layout((128, 128, 256, 256, 512), 16, 32, True, False, 0)
KL8 = Layout((128, 256, 512, 512), 4, 8, False, False, 0)


def vq16(section: VQTokenizer) -> Layout:
    """LDM's VQ-16, or one with vectors of another size, as taming's."""
    return Layout(KL16.channels, section.channels, section.channels, True, True, section.codebook_size)


@dataclass(frozen=True)
class Work:
    """Floating-point operations (2 per multiply-add) of one image and the weights they read."""

    flops: float
    parameters: int

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.parameters + other.parameters)


NOTHING = Work(0.0, 0)


def convolution(side: int, inputs: int, outputs: int, kernel: int) -> Work:
    """A square convolution with an output of `side` x `side`; biases are not counted."""
    parameters = inputs * outputs * kernel**2
    return Work(2.0 * parameters * side**2, parameters)


def residual(side: int, inputs: int, outputs: int) -> Work:
    """Two 3x3 convolutions, and a 1x1 one on the skip where the channels change."""
    work = convolution(side, inputs, outputs, 3) + convolution(side, outputs, outputs, 3)
    return work if inputs == outputs else work + convolution(side, inputs, outputs, 1)


def attention(side: int, channels: int) -> Work:
    """One head over all pixels: four projections, scores and weighted sum."""
    pixels = side**2
    return Work(4 * 2.0 * pixels * channels**2 + 4.0 * pixels**2 * channels, 4 * channels**2)


def middle(side: int, channels: int) -> Work:
    """Residual block, attention, residual block."""
    return residual(side, channels, channels) + attention(side, channels) + residual(side, channels, channels)


def decoding(layout: Layout, latent_size: int, image_channels: int) -> Work:
    """Latents of `latent_size` x `latent_size` to one image."""
    side, width = latent_size, layout.channels[-1]
    work = convolution(side, layout.latent_channels, layout.latent_channels, 1)
    work += convolution(side, layout.latent_channels, width, 3) + middle(side, width)
    for level, channels in enumerate(reversed(layout.channels)):
        for _ in range(3):
            work += residual(side, width, channels)
            width = channels
            if level == 0 and layout.decoder_attention:
                work += attention(side, channels)
        if level + 1 < len(layout.channels):
            side *= 2
            work += convolution(side, channels, channels, 3)
    return work + convolution(side, width, image_channels, 3)


def encoding(layout: Layout, image_size: int, image_channels: int) -> Work:
    """One image to moments, or to codes where the layout has a codebook."""
    side, width = image_size, layout.channels[0]
    work = convolution(side, image_channels, width, 3)
    for level, channels in enumerate(layout.channels):
        coarsest = level + 1 == len(layout.channels)
        for _ in range(2):
            work += residual(side, width, channels)
            width = channels
            if coarsest and layout.encoder_attention:
                work += attention(side, channels)
        if not coarsest:
            side //= 2
            work += convolution(side, channels, channels, 3)
    work += middle(side, width) + convolution(side, width, layout.moments, 3)
    work += convolution(side, layout.moments, layout.moments, 1)
    if layout.codebook_size:  # distances to every entry
        work += convolution(side, layout.latent_channels, layout.codebook_size, 1)
    return work


def tokenizer_work(recipe: Recipe) -> tuple[Work, Work] | None:
    """Return (encode, decode) of one image; None for an architecture known only when its weights are loaded.

    k-means decodes by a look-up and pixels are their own latents, so both cost nothing there.
    """
    match recipe.tokenizer:
        case PixelsTokenizer():
            return NOTHING, NOTHING
        case KMeansTokenizer(output="codes", patch_size=patch):
            pixels = recipe.data.channels * patch**2
            distances = convolution(recipe.latent.size, pixels, recipe.tokenizer.codebook_size, 1)
            return distances, NOTHING
        case KMeansTokenizer():
            return NOTHING, NOTHING
        case KLTokenizer(kind="kl16"):
            layout = KL16
        case KLTokenizer():
            layout = KL8
        case VQTokenizer():
            layout = vq16(recipe.tokenizer)
        case _:
            return None
    channels = recipe.data.channels
    return encoding(layout, recipe.data.image_size, channels), decoding(layout, recipe.latent.size, channels)
