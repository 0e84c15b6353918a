"""`sample:` - the defaults of `marcli sample`, `eval-fid` and `bench`."""

from typing import Literal

from pydantic import Field

from marcli.recipe.approximate import Approximate
from marcli.recipe.section import Section


class Sample(Section):
    """How pictures are generated from a trained model."""

    steps: int | None = Field(
        default=None, ge=1, description="AR steps; null: 64, or one per token where fewer or for a causal backbone"
    )
    cfg: float = Field(default=1.0, ge=1, description="guidance scale; 1 is none")
    cfg_schedule: Literal["linear", "constant"] = Field(
        default="linear", description="guidance grows with the share of revealed tokens, or stays"
    )
    temperature: float = Field(default=1.0, gt=0, description="factor on the noise of each reverse diffusion step")
    diffusion_steps: int = Field(default=100, ge=1, le=1000, description="reverse diffusion steps per token")
    max_timestep: int = Field(
        default=999, ge=1, le=999, description="largest timestep used; later ones are replaced by it"
    )
    clip_denoised: float | None = Field(
        default=None, gt=0, description="clip predicted x_0 to this absolute value (latent units); null: off"
    )
    confidence_temperature: float = Field(
        default=4.5, ge=0, description="Gumbel noise on the confidence order (MaskGIT), falling to 0 at the last step"
    )
    kv_cache: bool | None = Field(default=None, description="keep keys and values; null: for causal backbones")
    approximate: Approximate = Field(default=Approximate(), description="approximations, each off by default")
    num: int = Field(default=16, ge=1, description="pictures")
    batch_size: int = Field(default=64, ge=1, description="pictures generated together")
