"""The points of a sweep: which structures, in which formats, and the recipe of each.

Structures of rising speed form one ladder: each is shrunk from the one before and recovered for a
few steps, so that a whole family costs little more than its smallest member (ZipLM, Kurtic et al.
2023, arXiv 2302.04089, section 3.3 makes a family of models in one gradual run). Shares of zeros
form a second ladder of the same kind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.config import Recipe
from tasks.errors import RecipeError
from tasks.sections import Form

_STORED = {"float32": "none", "int8": "int8", "int4": "int4"}


@dataclass(frozen=True)
class Point:
    """One specialist of a sweep.

    Attributes:
        name: such as 2x-int8 or 75%-float32.
        speedup: that structure was shrunk for, over the generalist, or None.
        sparsity: share of zeros, or None.
        form: the numbers that are stored.
    """

    name: str
    speedup: float | None
    sparsity: float | None
    form: Form


def points(recipe: Recipe, speedups: Sequence[float]) -> list[Point]:
    """Every structure in every format, in the order in which they are made."""
    found = [
        Point(f"{speed:g}x-{form}", speed, None, form)
        for speed in speedups
        for form in recipe.sweep.formats
    ]
    return found + [
        Point(f"{100 * share:g}%-{form}", None, share, form)
        for share in recipe.sweep.sparsities
        for form in recipe.sweep.formats
    ]


def laddered(recipe: Recipe, speedups: Sequence[float]) -> Recipe:
    """The recipe whose steps of shrinking are the sweep's structures of rising speed."""
    asked, shrink = recipe.sweep, recipe.shrink
    usual = 3 * recipe.distill.steps if shrink.steps is None else shrink.steps
    # a structure continues from one that was searched for already
    generations = math.ceil(shrink.generations / 3)
    changes = {
        "generations": generations,
        "path": list(speedups) or None,
        "steps": math.ceil(usual / 3) if asked.steps is None else asked.steps,
        "plan_format": "int8" if "int8" in asked.formats else "none",
    }
    return recipe.model_copy(update={"shrink": shrink.model_copy(update=changes)})


def stored_as(recipe: Recipe, form: Form) -> Recipe:
    """The recipe that stores its specialist in a format; no study of calibration for each."""
    quantize = recipe.quantize.model_copy(update={"format": _STORED[form]})
    return recipe.model_copy(update={"quantize": quantize}).unreported()


def unshrunk(recipe: Recipe) -> Recipe:
    """The recipe of the ladder of zeros: nothing is shrunk, the target does not ask for zeros."""
    sparsities = recipe.sweep.sparsities
    if not sparsities:
        return recipe
    prune = recipe.prune.model_copy(update={"sparsity": sparsities[-1]})
    distill = recipe.distill.model_copy(update={"rungs": list(sparsities)})
    shrink = recipe.shrink.model_copy(update={"path": None, "kinds": []})
    changes = {"prune": prune, "distill": distill, "shrink": shrink}
    return recipe.model_copy(update=changes)


def recipe_of(recipe: Recipe, way: Sequence[float], point: Point) -> Recipe:
    """The recipe that makes one point by itself, its stages being those of the sweep.

    Args:
        way: the speeds that were passed on the way to the point, its own the last.
    """
    if point.sparsity is None:
        return stored_as(laddered(recipe, way), point.form)
    passed = [share for share in recipe.sweep.sparsities if share <= point.sparsity]
    sweep = recipe.sweep.model_copy(update={"sparsities": passed})
    return stored_as(unshrunk(recipe.model_copy(update={"sweep": sweep})), point.form)


def require_points(recipe: Recipe) -> None:
    """Raise where the sweep has nothing to sweep over."""
    if recipe.sweep.speedups == [] and not recipe.sweep.sparsities:
        raise RecipeError(
            "sweep.speedups: [] and sweep.sparsities: [] leave no point; name speeds such as "
            "[2, 3, 4] or shares of zeros such as [0.5, 0.75]"
        )
    if recipe.distill.total_steps is not None and recipe.sweep.sparsities:
        raise RecipeError(
            f"distill.total_steps: {recipe.distill.total_steps} cannot be divided over "
            "sweep.sparsities, whose every share is a point with steps of its own; leave it out "
            "and set distill.steps"
        )


def between(low: float, high: float) -> float:
    """The speed in the middle of two, in equal ratios, with three digits."""
    return float(f"{math.sqrt(low * high):.3g}")
