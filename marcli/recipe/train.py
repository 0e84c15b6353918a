"""`train:` - how long, how fast, and how often to write."""

from typing import Annotated, Literal

from pydantic import Field

from marcli.recipe.section import Section

Decay = Annotated[float, Field(ge=0, lt=1)]


class Train(Section):
    """Optimisation, as in section 5 of the paper where a default is given."""

    steps: int | None = Field(default=None, ge=1, description="optimizer steps; give this or epochs")
    epochs: float | None = Field(default=None, gt=0, description="passes over the data; give this or steps")
    batch_size: int = Field(ge=1, description="images per optimizer step, over all processes")
    micro_batch_size: int | None = Field(
        default=None, ge=1, description="images per forward pass and process; null: all of the process's share at once"
    )
    lr: float = Field(gt=0, description="peak learning rate of AdamW")
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.95), description="AdamW's decay rates")
    weight_decay: float = Field(default=0.02, ge=0, description="on matrices of the backbone; never on the head")
    lr_schedule: Literal["constant", "cosine"] = Field(default="constant", description="after the warm-up")
    warmup_steps: int | None = Field(default=None, ge=0, description="steps of linear warm-up; give this or epochs")
    warmup_epochs: float | None = Field(default=None, ge=0, description="epochs of linear warm-up")
    grad_clip: float = Field(default=3.0, gt=0, description="largest L2 norm of the gradient")
    ema_decay: float = Field(default=0.9999, ge=0, lt=1, description="decay of the averaged weights per step")
    label_drop: float = Field(default=0.1, ge=0, le=1, description="share of labels dropped, for guidance")
    activation_checkpointing: bool = Field(default=False, description="recompute blocks in backward to save memory")
    nan_policy: Literal["stop", "skip"] = Field(
        default="stop",
        description="on a loss that is not finite: stop at the last checkpoint, or skip up to 9 steps in a row",
    )
    compile: bool | None = Field(
        default=None,
        description="compile the blocks and, on a single GPU, record the step; null: on a GPU, from 10,000 steps on",
    )
    seed: int = Field(default=0, ge=0, description="of weights, data order, masks and noise")
    log_every: int = Field(default=50, ge=1, description="steps between lines of metrics.jsonl")
    sample_every: int | None = Field(
        default=None, ge=1, description="steps between sample grids; null: only at the end"
    )
    checkpoint_every: int = Field(default=1000, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(default=2, ge=1, description="complete checkpoints kept")
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        default=(), description="trackers beside metrics.jsonl"
    )
