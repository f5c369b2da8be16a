"""What every section of a recipe has in common: strict, frozen, plain texts, bounded numbers."""

from __future__ import annotations

import itertools
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tasks.fences import is_one_line
from tasks.secrets import holds_secret

# Far above what any run can take: a slip of the keyboard is told at once, not after a night.
Count = Annotated[int, Field(le=100_000_000)]
Amount = Annotated[float, Field(le=1_000_000_000)]


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, and nothing changes after reading."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        serialize_by_alias=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,  # Prefect stores what a form's error says
        str_max_length=4096,  # the longest path that Linux takes
    )

    @field_validator("*")
    @classmethod
    def _texts_are_plain(cls, value: Any) -> Any:
        for text in [value] if isinstance(value, str) else value if isinstance(value, list) else ():
            if isinstance(text, str) and not is_one_line(text):
                raise ValueError("must be one line of text without control characters")
        if isinstance(value, str) and holds_secret(value):
            raise ValueError(
                "holds a password or token, and recipes are recorded; keep it in the environment"
            )
        return value


def rising_speeds(value: list[float]) -> list[float]:
    """The same list, where every speed is above the one before it and above zero."""
    if any(b <= a for a, b in itertools.pairwise([0.0, *value])):
        raise ValueError("must be speeds in rising order, each above 0, such as [2, 3, 4]")
    return value
