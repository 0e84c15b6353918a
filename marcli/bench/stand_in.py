"""Systems without trained weights, for measuring speed alone.

Nothing is fetched. A tokenizer gets fresh weights of the published architecture, since decoding noise takes as long as
decoding pictures.
"""

import torch
from torch import nn

from marcli.recipe.schema import Recipe
from marcli.recipe.tokenizer import KLTokenizer, KMeansTokenizer, VQTokenizer
from marcli.runtime.seeding import item_seed
from marcli.sampling.load import random_system
from marcli.sampling.system import System
from marcli.tokenizer.base import Tokenizer
from marcli.tokenizer.build import build_tokenizer


def stand_in_system(recipe: Recipe, *, seed: int) -> System:
    """Return the recipe's system with random weights; raises MarcliError where a tokenizer's shape needs its files."""
    return random_system(recipe, tokenizer=random_tokenizer(recipe, seed=seed), seed=seed)


def random_tokenizer(recipe: Recipe, *, seed: int) -> Tokenizer:
    """Return the recipe's tokenizer with random weights and scale 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(item_seed("random tokenizer", seed))
        tokenizer = fresh_tokenizer(recipe)
    tokenizer.scale = 1.0
    return tokenizer.eval().requires_grad_(False)


def fresh_tokenizer(recipe: Recipe) -> Tokenizer:
    """Build without reading weights what can be built so."""
    shape = recipe.latent
    match recipe.tokenizer:
        case KLTokenizer(kind=kind):
            from diffusers import AutoencoderKL

            from marcli.tokenizer import kl

            network = AutoencoderKL(**kl.ARCHITECTURES[kind].blocks())
            return kl.KLTokenizer(shape, kind=kind, scale=1.0, network=network)
        case VQTokenizer() as section:
            from marcli.tokenizer import vq

            return vq.VQTokenizer(shape, scale=1.0, network=random_vq(section))
        case KMeansTokenizer():
            tokenizer = build_tokenizer(recipe, folder=None)
            nn.init.uniform_(tokenizer.codebook, -1, 1)
            return tokenizer
    return build_tokenizer(recipe, folder=None)


def random_vq(section: VQTokenizer) -> nn.Module:
    """The network of `vq16` with a fresh codebook."""
    from diffusers import VQModel

    from marcli.tokenizer.architecture import AutoencoderArchitecture
    from marcli.tokenizer.vq import WIDTHS

    architecture = AutoencoderArchitecture(
        widths=WIDTHS, latent_channels=section.channels, attention=True, decoder_attention=True
    )
    return VQModel(
        **architecture.blocks(),
        num_vq_embeddings=section.codebook_size,
        vq_embed_dim=section.channels,
        scaling_factor=1.0,
    )
