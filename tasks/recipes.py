"""Reading recipes: YAML, `--set` changes, relative paths, and faults told in one line."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from tasks.config import Recipe
from tasks.errors import RecipeError
from tasks.fences import there
from tasks.plain_yaml import plain_yaml, read_yaml

_LONGEST_SHOWN = 120  # characters of a value in a message


def load_recipe(path: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply `--set a.b=value` changes, resolve its paths.

    Relative paths are looked up in the current directory, then in the recipe's folder.
    Raises `RecipeError` (one line).
    """
    file = Path(path)
    if not there(file) or not file.is_file():
        raise RecipeError(f"recipe: {file} is not a file; give the path of a YAML recipe")
    raw = read_yaml(file)
    for change in changes:
        _apply(raw, change)
    return _resolve(parse_recipe(raw, str(file)), file.parent)


def changed(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    """The recipe with `--set a.b=value` changes; raises `RecipeError` (one line)."""
    raw = recipe.model_dump(mode="json")
    for change in changes:
        _apply(raw, change)
    return parse_recipe(raw, "--set")


def parse_recipe(raw: dict[str, Any], where: str = "recipe") -> Recipe:
    """Validate plain values; the first fault becomes a one-line `RecipeError`."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(f"{where}: {_one_line(error)}") from None


def _one_line(error: ValidationError) -> str:
    faults = error.errors()
    # a misspelt field is the likelier cause of one that is missing
    fault = next((each for each in faults if each["type"] == "extra_forbidden"), faults[0])
    path = [str(part) for part in fault["loc"]]
    name, value = ".".join(path), fault["input"]
    if not path:
        return str(fault["ctx"]["error"] if "ctx" in fault else fault["msg"])
    if fault["type"] == "extra_forbidden":
        return f"{name}: no such field{_nearest(path)}"
    if fault["type"] == "missing":
        return f"{name}: missing; {_describe(path)}"
    reason = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{name}: {_shown(value)} {reason}; {_describe(path)}"


def _shown(value: Any) -> str:
    """A value as messages show it: the beginning of a long one."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of five thousand digits
        text = type(value).__name__
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _section(path: Sequence[str]) -> type[BaseModel] | None:
    model: type[BaseModel] | None = Recipe
    for key in path:
        field = model.model_fields.get(key) if model else None
        kind = field.annotation if field else None
        model = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
    return model


def _names(model: type[BaseModel]) -> dict[str, str]:
    """Field names as a user writes them -> descriptions."""
    return {f.alias or n: f.description or "" for n, f in model.model_fields.items()}


def _describe(path: Sequence[str]) -> str:
    for depth in range(len(path), 0, -1):  # a list's index has no description: its field has
        model = _section(path[: depth - 1])
        if model is not None and path[depth - 1] in _names(model):
            return _names(model)[path[depth - 1]].rstrip(".")
    return "see the recipe's fields"


def _nearest(path: Sequence[str]) -> str:
    model = _section(path[:-1])
    known = list(_names(model)) if model else []
    close = difflib.get_close_matches(path[-1], known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"


def _apply(raw: dict[str, Any], change: str) -> None:
    dotted, equals, text = change.partition("=")
    path = dotted.strip().split(".")
    if not equals or not all(path):
        raise RecipeError(f"--set: {_shown(change)} is not of the form section.field=value")
    for depth in range(1, len(path) + 1):
        model = _section(path[: depth - 1])
        if model is None or path[depth - 1] not in _names(model):
            raise RecipeError(f"--set: {dotted}: no such field{_nearest(path[:depth])}")
    try:
        value = plain_yaml(text)
    except ValueError:
        raise RecipeError(
            f"--set: {dotted}: {_shown(text)} is not readable as a YAML value"
        ) from None
    target = raw
    for key in path[:-1]:
        inner = target.get(key)
        target[key] = inner = dict(inner) if isinstance(inner, dict) else {}
        target = inner
    target[path[-1]] = value


def _resolve(recipe: Recipe, folder: Path) -> Recipe:
    def found(text: str) -> str:
        beside = folder / text
        return str(beside) if not there(Path(text)) and there(beside) else text

    task = recipe.task
    sources = {key: getattr(task, key) for key in ("train", "test", "unlabelled", "generic")}
    moved = {key: found(value) for key, value in sources.items() if value not in (None, "rest")}
    prefix, _, rest = recipe.generalist.source.rpartition(":")
    if prefix in ("hf", "timm:local-dir"):
        rest = found(rest)
    source = f"{prefix}:{rest}" if prefix else rest
    profile = recipe.shrink.profile
    shrink = {"profile": found(profile)} if profile else {}
    outside = recipe.limits.outside
    limits = {"outside": found(outside)} if outside else {}
    return recipe.model_copy(
        update={
            "task": task.model_copy(update=moved),
            "shrink": recipe.shrink.model_copy(update=shrink),
            "limits": recipe.limits.model_copy(update=limits),
            "generalist": recipe.generalist.model_copy(update={"source": source}),
        }
    )
