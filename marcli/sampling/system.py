"""A trained system: everything that turns a seed into a picture."""

from dataclasses import dataclass

from torch import nn

from marcli.recipe.schema import Recipe
from marcli.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class Named:
    """What the user named, before anything of it is loaded; see `System`."""

    name: str
    recipe: Recipe
    weights: str


@dataclass(frozen=True)
class System:
    """Recipe, model and tokenizer of one run; architecture is never stated twice.

    Attributes:
        name: what the user called it: a run, a file, a published name
        weights: which weights the model holds, 'ema' or 'raw'
        weights_sha256: hash of the weights file, or None for weights that come from no file
        note: what to say about the weights in reports (for example 'random weights'), or None
    """

    name: str
    recipe: Recipe
    model: nn.Module
    tokenizer: Tokenizer
    weights: str
    weights_sha256: str | None
    note: str | None
