"""A fleet: one recipe's fields for all, and a list of members that differ from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)

from tasks.config import Recipe
from tasks.recipes import parse_recipe
from tasks.sections import Section

__all__ = ["Fleet", "Member"]

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,49}$"


class _Sparse(Section):
    """Values of which only those that were given are written down again."""

    @model_serializer(mode="wrap")
    def _only_what_was_given(self, usual: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        given = {fields[name].alias or name for name in self.model_fields_set}
        return {key: value for key, value in usual(self).items() if key in given}


def _optional(section: type[Section]) -> dict[str, Any]:
    """The fields of a section, none of them required: what a member may say differently."""
    fields: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            inner = create_model(
                f"{kind.__name__}Changes",
                __base__=(_Sparse, kind),
                __doc__=kind.__doc__,
                __module__=__name__,
                **_optional(kind),
            )
            globals()[inner.__name__] = inner  # a name to be pickled by, on the way to workers
            fields[name] = inner, Field(default=inner(), description=field.description)
            continue
        parts = field.asdict()
        attributes = {k: v for k, v in parts["attributes"].items() if not k.startswith("default")}
        loose = (kind | None, *parts["metadata"], Field(**attributes))
        fields[name] = Annotated[loose], None
    return fields


_SHARED = _optional(Recipe)
_Differing: Any = create_model("_Differing", __base__=_Sparse, __module__=__name__, **_SHARED)


class _Changes(_Differing):  # made from the recipe's fields
    """Any of a recipe's fields."""

    @field_validator("cache", mode="before")
    @classmethod
    def _yaml_reads_on_and_off_as_booleans(cls, value: Any) -> Any:
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class Member(_Changes):
    """One specialist of a fleet: its name, and what differs from what all share."""

    name: str = Field(
        pattern=_NAME,
        description="Name of the member's folder; its registered model is called FLEET-NAME "
        "unless track.model_name says otherwise.",
    )
    gpu: bool | None = Field(
        None, description="Whether the member takes a GPU of its own; left out: as the fleet says."
    )


class Fleet(_Changes):
    """One generalist, many specialists: what they share, and what each says differently."""

    name: str = Field(
        pattern=_NAME, description="Name of the fleet and of its folder: letters, digits, . _ -"
    )
    gpu: bool = Field(
        False,
        description="Whether every member takes a GPU of its own, from the workers' resource GPU. "
        "Workers that winnow starts for other members see no GPU.",
    )
    members: list[Member] = Field(
        min_length=1,
        max_length=10_000,
        description="The specialists: a name each, and any field of a recipe that differs.",
    )

    @model_validator(mode="after")
    def _members_are_recipes(self) -> Fleet:
        names: set[str] = set()
        for member in self.members:
            if member.name.lower() in names:  # folders of some file systems know no case
                raise ValueError(f"members: two are called {member.name}; give each its own name")
            names.add(member.name.lower())
        models: dict[str, str] = {}
        for name, recipe in self.recipes().items():
            other = models.setdefault(recipe.model_name, name)
            if recipe.track.register_model and other != name:
                raise ValueError(
                    f"members: {other} and {name} would both register {recipe.model_name}; give "
                    "each its own track.model_name, or leave it out"
                )
        return self

    def recipes(self) -> dict[str, Recipe]:
        """By member, in order, the whole recipe; raises `RecipeError` that names the member."""
        shared = _given(self)
        for key in ("members", "gpu"):
            shared.pop(key, None)
        found = {}
        for member in self.members:
            own = _given(member)
            own.pop("gpu", None)
            plain = merged(shared, own) | {"name": f"{self.name}-{member.name}"}
            found[member.name] = parse_recipe(plain, f"members.{member.name}")
        return found

    def takes_gpu(self) -> dict[str, bool]:
        """By member, whether it takes a GPU of its own."""
        return {m.name: self.gpu if m.gpu is None else m.gpu for m in self.members}


def merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values, the second's over the first's; lists are replaced whole."""
    both = dict(shared)
    for key, value in own.items():
        inner = both.get(key)
        nested = isinstance(inner, Mapping) and isinstance(value, Mapping)
        both[key] = merged(inner, value) if nested else value  # type: ignore[arg-type]
    return both


def _given(model: Section) -> dict[str, Any]:
    return model.model_dump(mode="json")
