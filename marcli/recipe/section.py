"""The base of every recipe section: strict, frozen, closed to unknown keys."""

from pydantic import BaseModel, ConfigDict

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # of what names a folder


class Section(BaseModel):
    """One mapping of a recipe. Unknown keys, wrong types, NaN and infinity are errors."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())
