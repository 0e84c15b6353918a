"""A whole recipe: its sections, what follows from them, and which combinations exist.

No torch here: everything a recipe can get wrong is said before it is imported.
"""

from pydantic import Field, model_validator

from marcli.recipe.approximate import OF_THE_DIFFUSION_HEAD, switched_on
from marcli.recipe.data import Data
from marcli.recipe.model import (
    CausalBackbone,
    CrossEntropyHead,
    DiffusionHead,
    DiTBackbone,
    L2Head,
    MaskedBackbone,
    Model,
)
from marcli.recipe.sample import Sample
from marcli.recipe.section import NAME, Section
from marcli.recipe.tokenizer import LatentShape, Tokenizer, latent_shape
from marcli.recipe.train import Train

MOST_TOKENS = 2**20
OF_DIFFUSION = ("diffusion_steps", "max_timestep", "clip_denoised")


class Recipe(Section):
    """One experiment: data, tokenizer, model, training and the defaults of sampling."""

    name: str = Field(pattern=NAME, description="names the run: runs/<name>")
    reported: str | None = Field(default=None, description="what the paper reports for this recipe, and where")
    data: Data
    tokenizer: Tokenizer
    model: Model
    train: Train
    sample: Sample = Field(default=Sample())

    @property
    def latent(self) -> LatentShape:
        """Shape of one image's latents."""
        return latent_shape(self.tokenizer, self.data.image_size, self.data.channels)

    @property
    def tokens_per_side(self) -> int:
        """Side of the square of tokens."""
        return self.latent.size // self.model.patch_size

    @property
    def num_tokens(self) -> int:
        """Tokens of one image."""
        return self.tokens_per_side**2

    @property
    def token_dim(self) -> int:
        """Channels of one token; 1 for codes."""
        return self.latent.channels * self.model.patch_size**2

    @property
    def order(self) -> str | None:
        """Order in which tokens are revealed, with the backbone's default filled in; None for a DiT."""
        match self.model.backbone:
            case DiTBackbone():
                return None
            case CausalBackbone():
                return self.model.order or "raster"
            case MaskedBackbone():
                return self.model.order or "random"

    @property
    def sampling_steps(self) -> int | None:
        """AR steps of one image; None for a DiT."""
        match self.model.backbone:
            case DiTBackbone():
                return None
            case CausalBackbone():
                return self.num_tokens
            case MaskedBackbone():
                return self.sample.steps or min(64, self.num_tokens)

    @property
    def uses_kv_cache(self) -> bool:
        """Whether keys and values are kept in generation: for a causal backbone, unless `sample.kv_cache` says no."""
        return isinstance(self.model.backbone, CausalBackbone) and self.sample.kv_cache is not False

    @property
    def denoises(self) -> bool:
        """Whether tokens, or the whole grid of a DiT, are sampled in `sample.diffusion_steps` steps."""
        return isinstance(self.model.backbone, DiTBackbone) or self.model.head.denoises

    @model_validator(mode="after")
    def _combination_exists(self) -> "Recipe":
        check_geometry(self)
        check_head(self)
        check_order(self)
        check_sampling(self)
        check_approximations(self)
        check_training(self)
        return self


def check_geometry(recipe: Recipe) -> None:
    """Grid and width must divide, and there must not be too many tokens; raises ValueError."""
    latent, patch, backbone = recipe.latent, recipe.model.patch_size, recipe.model.backbone
    if latent.size % patch:
        raise ValueError(
            f"model.patch_size {patch} does not divide the {latent.size}x{latent.size} latents: choose a divisor"
        )
    if recipe.num_tokens > MOST_TOKENS:
        raise ValueError(
            f"an image of data.image_size {recipe.data.image_size} has {recipe.num_tokens:,} tokens, more than "
            f"{MOST_TOKENS:,}: choose a smaller size, or a larger model.patch_size"
        )
    if latent.codebook_size is not None and patch != 1:
        raise ValueError("model.patch_size must be 1 over a tokenizer that outputs codes")
    if backbone.width % backbone.heads:
        raise ValueError(
            f"model.backbone.heads {backbone.heads} does not divide its width {backbone.width}: choose a divisor"
        )
    if isinstance(backbone, DiTBackbone) and backbone.width % 4:
        raise ValueError(
            f"model.backbone.width is {backbone.width}, but a 'dit' takes multiples of 4: its positions are sines and "
            "cosines of rows and columns"
        )


def check_head(recipe: Recipe) -> None:
    """Discrete heads need codes, continuous heads need latents, a DiT has no head; raises ValueError."""
    head, codes = recipe.model.head, recipe.latent.codebook_size is not None
    if isinstance(recipe.model.backbone, DiTBackbone):
        if head is not None:
            raise ValueError("model.backbone.kind 'dit' denoises the whole grid itself: leave model.head out")
        if codes:
            raise ValueError("model.backbone.kind 'dit' needs continuous latents: tokenizer.kind kl8, kl16 or pixels")
        return
    if head is None:
        raise ValueError("model.head is missing: give it a kind, for example 'diffusion' with width and depth")
    if isinstance(head, CrossEntropyHead) and not codes:
        raise ValueError(
            f"model.head.kind 'cross_entropy' predicts codes, but tokenizer.kind {recipe.tokenizer.kind!r} gives "
            "continuous latents: use tokenizer.kind vq16 or kmeans with output 'codes', or model.head.kind 'diffusion'"
        )
    if not isinstance(head, CrossEntropyHead) and codes:
        raise ValueError(
            f"model.head.kind {head.kind!r} predicts continuous tokens, but the tokenizer gives codes: "
            "set tokenizer.output 'latents', or use model.head.kind 'cross_entropy'"
        )


def check_order(recipe: Recipe) -> None:
    """A DiT has no order, and confidence needs a masked backbone and codes; raises ValueError."""
    order, backbone, head = recipe.model.order, recipe.model.backbone, recipe.model.head
    if order is not None and isinstance(backbone, DiTBackbone):
        raise ValueError("model.order has no meaning for model.backbone.kind 'dit': leave it out")
    if order == "confidence" and not isinstance(head, CrossEntropyHead):
        raise ValueError(
            f"model.order 'confidence' ranks codes by probability, which model.head.kind {head.kind!r} does not give: "
            "use order 'random', or head 'cross_entropy' over vq16 or kmeans codes"
        )
    if order == "confidence" and not isinstance(backbone, MaskedBackbone):
        raise ValueError(
            "model.order 'confidence' needs model.backbone.kind 'masked'; a causal one takes raster or random"
        )


def check_sampling(recipe: Recipe) -> None:
    """Steps fit the tokens, caches fit the backbone, guidance fits the training; raises ValueError."""
    sample, backbone, tokens = recipe.sample, recipe.model.backbone, recipe.num_tokens
    if isinstance(backbone, DiTBackbone):
        if sample.steps is not None:
            raise ValueError(
                "sample.steps counts AR steps, and model.backbone.kind 'dit' has none: set sample.diffusion_steps"
            )
    elif sample.steps is not None and sample.steps > tokens:
        raise ValueError(f"sample.steps is {sample.steps}, but an image has {tokens} tokens: at most {tokens}")
    elif isinstance(backbone, CausalBackbone) and sample.steps not in (None, tokens):
        raise ValueError(
            f"a causal backbone predicts one token per step: sample.steps must be {tokens}, or left out "
            "(model.backbone.kind 'masked' takes fewer)"
        )
    if sample.kv_cache and not isinstance(backbone, CausalBackbone):
        raise ValueError(
            f"sample.kv_cache needs model.backbone.kind 'causal': in a {backbone.kind!r} one every new token "
            "changes all keys and values"
        )
    if sample.diffusion_steps == 1 and sample.approximate.solver != "dpm++2m":
        raise ValueError(
            "sample.diffusion_steps is 1, and a single step would start and end at the cleanest timestep: at least 2 "
            "(one step from the noisiest needs sample.approximate.solver 'dpm++2m')"
        )
    if sample.cfg > 1 and recipe.train.label_drop == 0:
        raise ValueError("sample.cfg above 1 needs a model trained with train.label_drop above 0 (the paper: 0.1)")


def obstacle(recipe: Recipe, name: str) -> str | None:
    """Why the approximation `name` has nothing to act on in this model; None where it has."""
    backbone, head = recipe.model.backbone, recipe.model.head
    if isinstance(backbone, DiTBackbone):
        return "acts on AR steps, and model.backbone.kind 'dit' has none"
    if recipe.order == "confidence":
        return "needs an order known beforehand, and model.order is 'confidence'"
    if name in OF_THE_DIFFUSION_HEAD:
        return None if isinstance(head, DiffusionHead) else f"needs model.head.kind 'diffusion', not {head.kind!r}"
    if not isinstance(backbone, MaskedBackbone):
        return f"needs model.backbone.kind 'masked', not {backbone.kind!r}"
    if name == "feature_refresh" and backbone.decoder_depth < 2:
        return "needs model.backbone.decoder_depth of at least 2"
    if name == "order" and recipe.order != "random":
        return f"needs model.order 'random', not {recipe.order!r}"
    return None


def acts(recipe: Recipe, key: str) -> bool:
    """Whether a key of `sample` changes anything for this model."""
    backbone, head = recipe.model.backbone, recipe.model.head
    is_dit = isinstance(backbone, DiTBackbone)
    if key in OF_DIFFUSION:
        return recipe.denoises
    if key.startswith("approximate.") and key != "approximate.preset":
        return obstacle(recipe, key.removeprefix("approximate.")) is None
    match key:
        case "kv_cache":
            return isinstance(backbone, CausalBackbone)
        case "temperature":
            return not isinstance(head, L2Head)
        case "confidence_temperature":
            return recipe.order == "confidence"
        case "cfg_schedule":
            return not is_dit
    return True


def check_approximations(recipe: Recipe) -> None:
    """A switch needs the part of the model that it acts on; raises ValueError."""
    switches = recipe.sample.approximate
    for name in switched_on(switches):
        if problem := obstacle(recipe, name):
            raise ValueError(f"sample.approximate.{name} {problem}: leave it out")
    last = switches.final_diffusion_steps
    if last is not None and last > recipe.sample.diffusion_steps:
        raise ValueError(
            f"sample.approximate.final_diffusion_steps is {last}, and diffusion steps fall to it from "
            f"sample.diffusion_steps, which is {recipe.sample.diffusion_steps}: lower the one or raise the other"
        )
    if last == 1 and switches.solver != "dpm++2m":
        raise ValueError("sample.approximate.final_diffusion_steps is 1: at least 2, or take solver 'dpm++2m'")
    if switches.order == "checkerboard" and recipe.sampling_steps < 2:
        raise ValueError("sample.approximate.order 'checkerboard' needs at least 2 AR steps: set sample.steps")


def check_training(recipe: Recipe) -> None:
    """The lengths of training and warm-up are given in steps or in epochs, not both; raises ValueError."""
    train = recipe.train
    if (train.steps is None) == (train.epochs is None):
        raise ValueError("give exactly one of train.steps and train.epochs")
    if train.warmup_steps is not None and train.warmup_epochs is not None:
        raise ValueError("give at most one of train.warmup_steps and train.warmup_epochs")
