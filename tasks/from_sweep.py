"""From a finished sweep to the recipe of one of its points."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.config import Recipe
from tasks.errors import RecipeError
from tasks.points import Point, recipe_of
from tasks.recipes import load_recipe, parse_recipe

_NEEDED = {"point", "path", "speedup_asked", "sparsity_asked", "format"}
_AGAIN = "run `winnow sweep RECIPE` again"


def recipe_from_sweep(folder: Path, name: str | None = None) -> Recipe:
    """The recipe of the picked point, or of the point called `name`.

    Its stages are those of the sweep: on the same machine with the same home they are reused.

    Raises:
        RecipeError: no sweep lies in `folder`, no point passed, or none is called `name`.
    """
    report = read_sweep(folder)
    recipe = load_recipe(folder / "recipe.yaml")
    rows = {row["point"]: row for row in report["points"]}
    chosen = name or report["picked"]
    if chosen is None:
        raise RecipeError(
            f"--from-sweep: no point of {folder} passes ({report['picked_why']}); name one with "
            f"--point, such as {next(iter(rows))}"
        )
    if chosen not in rows:
        raise RecipeError(f"--point: {chosen!r} is not in {folder}; its points: {', '.join(rows)}")
    row = rows[chosen]
    point = Point(chosen, row["speedup_asked"], row["sparsity_asked"], row["format"])
    alone = recipe_of(recipe, row["path"], point)
    # a budget of the target that this point cannot meet is said now
    return parse_recipe(alone.model_dump(mode="json"), f"--from-sweep: {chosen}")


def read_sweep(folder: Path) -> dict[str, Any]:
    """The content of a finished sweep's sweep.json; raises `RecipeError` where there is none."""
    path = folder / "sweep.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        known = all(row.keys() >= _NEEDED for row in report["points"])
        if report["schema"] == 1 and known and {"picked", "picked_why"} <= report.keys():
            return report
    except OSError:
        raise RecipeError(
            f"--from-sweep: {path} is not there; give the folder of a finished sweep"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise RecipeError(f"--from-sweep: {path} is not a sweep of this version; {_AGAIN}")
