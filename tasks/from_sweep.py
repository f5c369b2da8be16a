"""From a finished sweep to the recipe of one of its points."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks.config import Recipe
from tasks.errors import RecipeError
from tasks.points import Point, recipe_of
from tasks.recipes import load_recipe, parse_recipe
from tasks.sections import Form

_AGAIN = "run `winnow sweep RECIPE` again"


class _Known(BaseModel):
    """Fields that are read; those beside them are for the card."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Row(_Known):
    """A point: a structure, reached over speeds of which its own is the last, or a share."""

    point: str
    path: list[float]
    speedup_asked: float | None
    sparsity_asked: float | None
    format: Form

    @model_validator(mode="after")
    def _leads_there(self) -> _Row:
        # a structure has a path that ends at its own speed, a share of zeros has none
        if self.path[-1:] != ([] if self.speedup_asked is None else [self.speedup_asked]):
            raise ValueError("the path does not end at the speed")
        if (self.speedup_asked is None) == (self.sparsity_asked is None):
            raise ValueError("a point is a speed or a share of zeros")
        return self


class _Sweep(_Known):
    """What of sweep.json leads to a recipe."""

    version: Literal[1] = Field(alias="schema")
    points: list[_Row]
    picked: str | None
    picked_why: str


def recipe_from_sweep(folder: Path, name: str | None = None) -> Recipe:
    """The recipe of the picked point, or of the point called `name`.

    Its stages are those of the sweep: on the same machine with the same home they are reused.

    Raises:
        RecipeError: no sweep lies in `folder`, no point passed, or none is called `name`.
    """
    sweep = _Sweep.model_validate(read_sweep(folder))
    recipe = load_recipe(folder / "recipe.yaml")
    rows = {row.point: row for row in sweep.points}
    chosen = name or sweep.picked
    if chosen is None:
        raise RecipeError(
            f"--from-sweep: no point of {folder} passes ({sweep.picked_why}); name one with "
            f"--point, such as {next(iter(rows), '2x-int8')}"
        )
    if chosen not in rows:
        raise RecipeError(f"--point: {chosen!r} is not in {folder}; its points: {', '.join(rows)}")
    row = rows[chosen]
    point = Point(chosen, row.speedup_asked, row.sparsity_asked, row.format)
    alone = recipe_of(recipe, row.path, point)
    # a budget of the target that this point cannot meet is said now
    return parse_recipe(alone.model_dump(mode="json"), f"--from-sweep: {chosen}")


def read_sweep(folder: Path) -> dict[str, Any]:
    """The content of a finished sweep's sweep.json; raises `RecipeError` where there is none."""
    path = folder / "sweep.json"
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _Sweep.model_validate(report)
    except OSError:
        raise RecipeError(
            f"--from-sweep: {path} is not there; give the folder of a finished sweep"
        ) from None
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        why = f" ({where}: {fault['msg']})" if where else ""
        raise RecipeError(
            f"--from-sweep: {path} is not a sweep of this version{why}; {_AGAIN}"
        ) from None
    except (ValueError, RecursionError):
        raise RecipeError(
            f"--from-sweep: {path} is not a sweep of this version; {_AGAIN}"
        ) from None
    return report
