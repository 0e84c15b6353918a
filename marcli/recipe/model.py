"""`model:` - tokens, backbone, order and head. Every system of the paper is one combination."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from marcli.recipe.section import Section

# Upper limits are far above any model, so that a slip of the finger is said and no memory is asked for it.
Width = Annotated[int, Field(ge=8, le=65536)]
Depth = Annotated[int, Field(ge=1, le=1000)]
MlpRatio = Annotated[float, Field(gt=0, le=64)]


class MaskedBackbone(Section):
    """Bidirectional encoder-decoder over known and hidden tokens (MAR, MAE)."""

    kind: Literal["masked"]
    width: Width = Field(description="channels of every block")
    encoder_depth: Depth = Field(description="blocks that see the known tokens only")
    decoder_depth: Depth = Field(description="blocks that see known and mask tokens")
    heads: int = Field(ge=1, description="attention heads; divides the width")
    mlp_ratio: MlpRatio = Field(default=4.0, description="hidden width of a block's MLP over its width")
    buffer_size: int = Field(default=64, ge=1, description="class tokens put before the encoder's sequence")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout of attention and projections")
    mask_ratio_min: float = Field(default=0.7, gt=0, le=1, description="smallest share of hidden tokens in training")
    mask_ratio_std: float = Field(
        default=0.25, gt=0, description="spread of the normal around 1, cut to [mask_ratio_min, 1]"
    )


class CausalBackbone(Section):
    """GPT-style stack: each token sees those before it in the order (AR)."""

    kind: Literal["causal"]
    width: Width = Field(description="channels of every block")
    depth: Depth = Field(description="number of blocks")
    heads: int = Field(ge=1, description="attention heads; divides the width")
    mlp_ratio: MlpRatio = Field(default=4.0, description="hidden width of a block's MLP over its width")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout of attention and projections")


class DiTBackbone(Section):
    """Diffusion transformer: one denoiser for the whole grid of latents, no order and no head."""

    kind: Literal["dit"]
    width: Width = Field(description="channels of every block")
    depth: Depth = Field(description="number of blocks")
    heads: int = Field(ge=1, description="attention heads; divides the width")
    schedule: Literal["linear", "cosine"] = Field(default="linear", description="noise schedule of 1,000 steps")
    guidance_channels: int | None = Field(
        default=None, ge=1, description="guide only the first n latent channels (published DiT: 3); null: all"
    )


class DiffusionHead(Section):
    """Denoising MLP trained with the diffusion loss: p(token | z) over continuous tokens."""

    kind: Literal["diffusion"]
    loss: ClassVar[str] = "the diffusion loss"  # as sentences call it
    loss_in_tables: ClassVar[str] = "Diff Loss"  # as Table 1 calls it
    denoises: ClassVar[bool] = True  # in `sample.diffusion_steps` passes; otherwise one pass gives the token
    width: Width = Field(description="channels of every residual block")
    depth: Depth = Field(description="residual blocks")
    schedule: Literal["cosine", "linear"] = Field(default="cosine", description="noise schedule of 1,000 steps")
    noise_draws: int = Field(default=4, ge=1, description="timesteps drawn per token for the same z in training")


class CrossEntropyHead(Section):
    """A linear layer over the codebook, trained with cross-entropy."""

    kind: Literal["cross_entropy"]
    loss: ClassVar[str] = "cross-entropy"
    loss_in_tables: ClassVar[str] = "CrossEnt"
    denoises: ClassVar[bool] = False


class L2Head(Section):
    """A linear layer that regresses the token: the paper's negative control (Appendix D)."""

    kind: Literal["l2"]
    loss: ClassVar[str] = "a squared loss"
    loss_in_tables: ClassVar[str] = "L2"
    denoises: ClassVar[bool] = False


Backbone = Annotated[MaskedBackbone | CausalBackbone | DiTBackbone, Field(discriminator="kind")]
Head = Annotated[DiffusionHead | CrossEntropyHead | L2Head, Field(discriminator="kind")]


class Model(Section):
    """The generative model over tokens."""

    patch_size: int = Field(default=1, ge=1, description="side of the square of latents grouped into one token")
    backbone: Backbone
    order: Literal["random", "raster", "confidence"] | None = Field(
        default=None,
        description="order in which tokens are revealed; null: random for masked, raster for causal, none for dit",
    )
    head: Head | None = Field(default=None, description="model of p(token | z); null for dit only")
