"""Vector-quantised autoencoder `vq16` of LDM and taming-transformers, through diffusers' `VQModel`.

With output 'codes' a row is the number of the nearest codebook vector; with 'latents' it is the vector before
quantisation, which decoding quantises first (as the paper does under a diffusion head).
"""

from pathlib import Path

import torch
from diffusers import VQModel
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor

from marcli.errors import MarcliError
from marcli.pretrained.ldm import read_ldm_file
from marcli.recipe.tokenizer import LatentShape
from marcli.tokenizer.architecture import AutoencoderArchitecture, load_diffusers, load_published
from marcli.tokenizer.base import Tokenizer, nearest_codes, to_bytes, to_signed

WIDTHS = (128, 128, 256, 256, 512)


class VQTokenizer(Tokenizer):
    """Encoder, codebook and decoder."""

    kind = "vq16"

    def __init__(self, shape: LatentShape, *, scale: float | None, network: VQModel) -> None:
        super().__init__(shape, scale=scale)
        self.network = network
        if shape.codebook_size is not None:
            self.row_dtype = torch.uint16

    @torch.no_grad()
    def encode(self, images: UInt8[Tensor, "batch c h w"]) -> Shaped[Tensor, "batch rows s s"]:
        """Return int64 codes [b, 1, s, s], or the vectors before quantisation [b, c, s, s]."""
        vectors = self.network.encode(to_signed(images)).latents
        return vectors if self.shape.codebook_size is None else self.quantise(vectors)

    @torch.no_grad()
    def decode(
        self, latents: Float[Tensor, "batch c s s"] | Int64[Tensor, "batch 1 s s"]
    ) -> UInt8[Tensor, "batch channels height width"]:
        """Return images of codes, or of scaled latents after quantising them."""
        codes = latents if self.shape.codebook_size is not None else self.quantise(self.unscale(latents))
        return to_bytes(self.reconstruct(codes))

    def quantise(self, vectors: Float[Tensor, "batch c s s"]) -> Int64[Tensor, "batch 1 s s"]:
        """Return the number of the codebook vector nearest to each vector."""
        flat = vectors.permute(0, 2, 3, 1).reshape(-1, vectors.shape[1])
        nearest = nearest_codes(flat, self.network.quantize.embedding.weight.to(flat.dtype))
        return nearest.reshape(vectors.shape[0], 1, *vectors.shape[2:])

    def reconstruct(self, codes: Int64[Tensor, "batch 1 s s"]) -> Float[Tensor, "batch channels height width"]:
        """Return the decoder's output, about -1..1."""
        vectors = self.network.quantize.embedding(codes[:, 0]).permute(0, 3, 1, 2).contiguous()
        return self.network.decode(vectors, force_not_quantize=True).sample


def load_vq(path: Path, *, channels: int, codebook_size: int, widths: tuple[int, ...]) -> VQModel:
    """Return the network of a published file (LDM's or taming's) or of a diffusers folder.

    The width of the encoder's output follows the file (LDM 8, taming 256); channels and size of the codebook must be
    the recipe's. Raises MarcliError naming what does not fit.
    """
    if path.is_dir():
        network = load_diffusers(path, network_class=VQModel)
    else:
        tensors = read_ldm_file(path)
        if "encoder.conv_out.weight" not in tensors or "quantize.embedding.weight" not in tensors:
            raise MarcliError(f"{path} is no vector-quantised autoencoder: it has no quantize.embedding.weight")
        size, width = tensors["quantize.embedding.weight"].shape
        network = load_published(
            path,
            network_class=VQModel,
            architecture=AutoencoderArchitecture(
                widths=widths,
                latent_channels=len(tensors["encoder.conv_out.weight"]),
                attention=True,
                decoder_attention=True,
            ),
            num_vq_embeddings=size,
            vq_embed_dim=width,
            scaling_factor=1.0,
        )
    size, width = network.quantize.embedding.weight.shape
    if (size, width) != (codebook_size, channels):
        raise MarcliError(
            f"{path} has {size} codes of {width} channels, but the recipe has {codebook_size} of {channels}: "
            f"set tokenizer.codebook_size={size} tokenizer.channels={width}"
        )
    return network
