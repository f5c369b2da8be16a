"""Low-rank factors beside the layers that a rung prunes, where the recipe asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.checkpoint import Bundle
from models.low_rank import add_low_rank, factors_cost, is_low_rank
from tasks.config import Recipe
from tasks.errors import RecipeError


def with_factors(recipe: Recipe, bundle: Bundle, layers: Sequence[str]) -> dict[str, Any]:
    """Give the bundle's layers factors of zeros, unless the rung below did; told in its delta.

    Args:
        layers: those that may have some: all that are pruned.

    Returns:
        what the stage tells: ``factors``, the weights that they add, and ``without_factors``, the
        layers for which they would not pay; nothing where the recipe asks for none.

    Raises:
        RecipeError: no layer can have factors of this rank.
    """
    asked, model = recipe.prune, bundle.model
    if asked.compensation == "none":
        return {}
    rank = asked.compensation_rank
    there = {name for name in layers if is_low_rank(model.get_submodule(name))}
    costs = {name: factors_cost(model.get_submodule(name), rank) for name in layers}
    fresh = {name: rank for name, cost in costs.items() if cost and name not in there}
    if not there and not fresh:
        raise RecipeError(
            f"prune.compensation_rank: {rank} saves no weight in any layer that is pruned; "
            "lower it, or set prune.compensation: none"
        )
    if fresh:
        add_low_rank(model, fresh)
        bundle.delta.append({"op": "low_rank", "layers": fresh})
    beside = sorted(there | set(fresh))
    added = sum(
        parameter.numel()
        for name in beside
        for inner, parameter in model.get_submodule(name).named_parameters()
        if "." in inner
    )
    return {"factors": added, "without_factors": sorted(set(layers) - set(beside))}
