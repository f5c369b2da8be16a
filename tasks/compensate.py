"""Low-rank factors beside the layers that are pruned or rounded, where the recipe asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.checkpoint import Bundle
from models.low_rank import add_low_rank, factors_cost, is_low_rank
from tasks.errors import RecipeError
from tasks.methods import Prune
from tasks.precision import Quantize


def with_factors(asked: Prune | Quantize, bundle: Bundle, layers: Sequence[str]) -> dict[str, Any]:
    """Give the bundle's layers factors of zeros, unless they have some; told in its delta.

    Args:
        asked: the section whose compensation it is.
        layers: those that may have some: all that are pruned, or rounded.

    Returns:
        what the stage tells: ``factors``, the weights that they add, and ``without_factors``, the
        layers for which they would not pay; nothing where the recipe asks for none.

    Raises:
        RecipeError: no layer can have factors of this rank.
    """
    model = bundle.model
    if asked.compensation == "none":
        return {}
    rank = asked.compensation_rank
    there = {name for name in layers if is_low_rank(model.get_submodule(name))}
    costs = {name: factors_cost(model.get_submodule(name), rank) for name in layers}
    fresh = {name: rank for name, cost in costs.items() if cost and name not in there}
    if not there and not fresh:
        section, done = ("prune", "pruned") if isinstance(asked, Prune) else ("quantize", "rounded")
        raise RecipeError(
            f"{section}.compensation_rank: {rank} saves no weight in any layer that is {done}; "
            f"lower it, or set {section}.compensation: none"
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
