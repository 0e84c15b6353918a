"""The one place where a recipe becomes modules."""

from torch import nn

from marcli.model.autoregressive import AutoregressiveModel
from marcli.model.backbone.causal import CausalBackbone
from marcli.model.backbone.masked import MaskedBackbone
from marcli.model.head.base import Head
from marcli.model.head.cross_entropy import CrossEntropyHead
from marcli.model.head.diffusion import DiffusionHead
from marcli.model.head.l2 import L2Head
from marcli.recipe import model as recipes
from marcli.recipe.schema import Recipe


def build_model(recipe: Recipe) -> nn.Module:
    """Return the recipe's model with fresh weights; on the meta device when called under one."""
    match recipe.model.backbone:
        case recipes.DiTBackbone():
            return build_dit(recipe)
        case recipes.MaskedBackbone() as backbone:
            mask_ratio = (backbone.mask_ratio_min, backbone.mask_ratio_std)
        case recipes.CausalBackbone():
            mask_ratio = None
    return AutoregressiveModel(
        backbone=build_backbone(recipe),
        head=build_head(recipe),
        num_tokens=recipe.num_tokens,
        token_dim=recipe.token_dim,
        patch_size=recipe.model.patch_size,
        num_classes=recipe.data.num_classes,
        width=recipe.model.backbone.width,
        label_drop=recipe.train.label_drop,
        order=recipe.order,
        mask_ratio=mask_ratio,
    )


def build_backbone(recipe: Recipe) -> nn.Module:
    """The transformer between tokens and z."""
    backbone = recipe.model.backbone
    shared = dict(
        num_tokens=recipe.num_tokens,
        token_dim=recipe.token_dim,
        codebook_size=recipe.latent.codebook_size,
        width=backbone.width,
        heads=backbone.heads,
        mlp_ratio=backbone.mlp_ratio,
        dropout=backbone.dropout,
    )
    match backbone:
        case recipes.MaskedBackbone():
            return MaskedBackbone(
                encoder_depth=backbone.encoder_depth,
                decoder_depth=backbone.decoder_depth,
                buffer_size=backbone.buffer_size,
                **shared,
            )
        case recipes.CausalBackbone():
            return CausalBackbone(depth=backbone.depth, **shared)


def build_head(recipe: Recipe) -> Head:
    """The model of p(token | z)."""
    z_dim, head = recipe.model.backbone.width, recipe.model.head
    match head:
        case recipes.DiffusionHead():
            return DiffusionHead(
                token_dim=recipe.token_dim,
                z_dim=z_dim,
                width=head.width,
                depth=head.depth,
                schedule=head.schedule,
                noise_draws=head.noise_draws,
            )
        case recipes.CrossEntropyHead():
            return CrossEntropyHead(codebook_size=recipe.latent.codebook_size, z_dim=z_dim)
        case recipes.L2Head():
            return L2Head(token_dim=recipe.token_dim, z_dim=z_dim)


def build_dit(recipe: Recipe) -> nn.Module:
    """The denoiser of the whole grid."""
    from marcli.model.backbone.dit import DiT

    backbone = recipe.model.backbone
    return DiT(
        channels=recipe.latent.channels,
        size=recipe.latent.size,
        patch_size=recipe.model.patch_size,
        num_classes=recipe.data.num_classes,
        width=backbone.width,
        depth=backbone.depth,
        heads=backbone.heads,
        schedule=backbone.schedule,
        label_drop=recipe.train.label_drop,
    )
