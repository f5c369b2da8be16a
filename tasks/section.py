"""What every section of a recipe has in common: strict, frozen, plain texts, bounded numbers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    field_validator,
)
from pydantic_core import core_schema

from compression.registry import Registry
from tasks.fences import is_one_line
from tasks.secrets import holds_secret

# Far above what any run can take: a slip of the keyboard is told at once, not after a night.
Count = Annotated[int, Field(le=100_000_000)]
Amount = Annotated[float, Field(le=1_000_000_000)]


@dataclass(frozen=True)
class OneOf:
    """Marks a text that names a method of a registry: checked here, a list to choose from in forms.

    ``method: Annotated[str, OneOf(pruners.METHODS)]``
    """

    methods: Registry

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self.methods.require, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(schema), "enum": list(self.methods)}


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
