"""Levels for all layers: how many zeros each one takes, or which size each branch gets."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from scipy import optimize, sparse

from compression.errors import CompressionError, UnreachableBudget


def uniform(
    sizes: Mapping[str, int], sparsity: float, *, dense: Collection[str] = ()
) -> dict[str, int]:
    """The same share of zeros in every layer that is not kept ``dense``; the total is exact.

    Dense layers count: the others take their share, so that ``round(sparsity * all weights)``
    weights are zero. Remainders go to the layers with the largest fractions.

    Args:
        sizes: weights a layer. sparsity: 0 to 1, of all weights together.

    Returns:
        zeros a layer (0 for the dense ones).

    Raises:
        CompressionError: when the layers that may be pruned cannot hold that many zeros.
    """
    if not 0.0 <= sparsity <= 1.0:
        raise CompressionError(f"sparsity {sparsity} is not between 0 and 1")
    total = round(sparsity * sum(sizes.values()))
    open_sizes = {name: size for name, size in sizes.items() if name not in dense}
    room = sum(open_sizes.values())
    if total > room:
        raise CompressionError(
            f"sparsity {sparsity:g} needs {total} zeros, but only {room} weights lie outside the "
            "layers kept dense; lower the sparsity or keep fewer layers dense"
        )
    shares = {name: total * size / room if room else 0.0 for name, size in open_sizes.items()}
    zeros = {name: int(share) for name, share in shares.items()}
    left = total - sum(zeros.values())
    for name in sorted(shares, key=lambda n: (zeros[n] - shares[n], n))[:left]:
        zeros[name] += 1
    return {name: zeros.get(name, 0) for name in sizes}


def settled(
    wanted: Mapping[str, float],
    *,
    least: Mapping[str, int],
    most: Mapping[str, int],
    total: int,
) -> dict[str, int]:
    """Whole numbers near those wanted, within bounds, whose sum is ``total``.

    What is missing goes to all in proportion to the room they have, what is too much comes from
    all in proportion to what they have above their least.

    Raises:
        CompressionError: the bounds leave no such numbers.
    """
    if not sum(least[name] for name in wanted) <= total <= sum(most[name] for name in wanted):
        raise CompressionError(
            f"{total} zeros asked of layers that hold "
            f"{sum(least[name] for name in wanted)} and have "
            f"{sum(most[name] for name in wanted)} weights"
        )
    near = {name: min(max(x, least[name]), most[name]) for name, x in wanted.items()}
    missing = total - sum(near.values())
    room = {name: most[name] - x if missing > 0 else x - least[name] for name, x in near.items()}
    part = missing / max(sum(room.values()), 1e-9)
    exact = {name: x + part * room[name] for name, x in near.items()}
    found = {name: min(max(math.floor(x), least[name]), most[name]) for name, x in exact.items()}
    left = total - sum(found.values())
    order = sorted(exact, key=lambda n: (found[n] - exact[n], n))
    while left:
        for name in [n for n in order if found[n] < most[n]][:left]:
            found[name] += 1
            left -= 1
    return found


def require_reachable(costs: Sequence[Sequence[float]], budget: float, name: str) -> None:
    """Raise UnreachableBudget where even the cheapest level of every item costs more."""
    least = sum(min(levels) for levels in costs)
    if least > budget:
        raise UnreachableBudget(name, budget, least)


def dynamic_programming(
    losses: Sequence[Sequence[float]],
    costs: Sequence[Sequence[float]],
    budget: float,
    *,
    name: str = "cost",
    buckets: int = 10_000,
) -> list[int]:
    """One level an item with the least total loss whose total cost stays within ``budget``.

    The multiple-choice knapsack by dynamic programming over a discretised cost (SPDY, arXiv
    2201.13096, section 3.1). Costs are rounded up to ``budget / buckets``, so the budget always
    holds; the best allocation may be missed by as much as that rounding.

    Args:
        losses, costs: of each level of each item; additive over items. name: of the budget.

    Returns:
        an index a item.

    Raises:
        UnreachableBudget: when even the cheapest levels cost more.
    """
    require_reachable(costs, budget, name)
    # the cheapest levels are paid for exactly; what is discretised is what goes beyond them
    floors = [min(levels) for levels in costs]
    room = budget - sum(floors)

    def buckets_of(cost: float) -> int:
        """Rounded up; without room, whatever costs anything costs too much."""
        if room <= 0:
            return 0 if cost <= 0 else buckets + 1
        return math.ceil(cost * buckets / room - 1e-9)

    best = torch.zeros(buckets + 1, dtype=torch.float64)  # least loss, at most b buckets spent
    choices = []
    for item_losses, item_costs, floor in zip(losses, costs, floors, strict=True):
        options = torch.full((len(item_losses), buckets + 1), torch.inf, dtype=torch.float64)
        for level, (loss, cost) in enumerate(zip(item_losses, item_costs, strict=True)):
            spent = buckets_of(cost - floor)
            if spent <= buckets:
                options[level, spent:] = best[: buckets + 1 - spent] + loss
        best, choice = options.min(dim=0)
        choices.append(choice)
    left, picked = buckets, []
    for choice, item_costs, floor in zip(
        reversed(choices), reversed(costs), reversed(floors), strict=True
    ):
        level = int(choice[left])
        picked.append(level)
        left -= buckets_of(item_costs[level] - floor)
    return picked[::-1]


def integer_program(
    losses: Sequence[Sequence[float]],
    costs: Mapping[str, Sequence[Sequence[float]]],
    budgets: Mapping[str, float],
) -> list[int]:
    """The same under several budgets at once, solved exactly (scipy's HiGHS).

    Args:
        costs: by budget's name, of each level of each item. budgets: upper bounds, same names.

    Raises:
        UnreachableBudget: when one budget cannot be met by itself.
        CompressionError: when each could be met alone, but not all together.
    """
    for name, budget in budgets.items():
        require_reachable(costs[name], budget, name)
    if not losses:
        return []
    lengths = [len(levels) for levels in losses]
    objective = [float(loss) for levels in losses for loss in levels]
    items = [item for item, n in enumerate(lengths) for _ in range(n)]
    ones = ([1.0] * len(items), (items, list(range(len(items)))))
    constraints = [optimize.LinearConstraint(sparse.coo_array(ones).tocsr(), 1, 1)]
    for name, budget in budgets.items():
        scale = max(abs(budget), 1e-12)
        row = [float(cost) / scale for levels in costs[name] for cost in levels]
        constraints.append(optimize.LinearConstraint([row], -math.inf, budget / scale))
    top = max(*objective, 1e-30)
    found = optimize.milp(
        [loss / top for loss in objective],
        constraints=constraints,
        integrality=[1] * len(items),
        bounds=optimize.Bounds(0, 1),
        options={"mip_rel_gap": 1e-4, "time_limit": 60},
    )
    if found.x is None:
        wanted = ", ".join(f"{name} {budget:g}" for name, budget in budgets.items())
        raise CompressionError(
            f"the budgets {wanted} can each be met alone, but not together; loosen one"
        )
    picked, start = [], 0
    for n in lengths:
        picked.append(int(found.x[start : start + n].argmax()))
        start += n
    return picked
