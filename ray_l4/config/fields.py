"""Building blocks of all settings classes."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    """Immutable settings that reject unknown keys, infinities and NaN. Field docstrings become descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def _check_split_name(name: str) -> str:
    if not name or "/" in name or "\\" in name:
        raise ValueError(f"expected the name of a split, such as validation, found {name!r}")
    return name


def _check_hub_name(name: str) -> str:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(:[^\s/:]+)?", name):
        raise ValueError(f"expected a data set of the hub, as OWNER/NAME or OWNER/NAME:SUBSET, found {name!r}")
    return name


SplitName = Annotated[str, AfterValidator(_check_split_name)]
HubName = Annotated[str, AfterValidator(_check_hub_name)]
"""A data set of the Hugging Face Hub."""
