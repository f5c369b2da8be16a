"""The trade-off of many specialists: which are on the front, and the smallest that passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def pareto(costs: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return which points no other one beats: none is cheaper and at least as good, or better and
    at most as dear.

    Args:
        costs: what is to be low, (N,).
        values: what is to be high, (N,).

    Returns:
        (N,) booleans; points that are equal in both are on the front together.

    Raises:
        ValueError: shapes differ, or a number is missing.
    """
    costs, values = np.asarray(costs, float), np.asarray(values, float)
    if costs.shape != values.shape or costs.ndim != 1:
        raise ValueError(f"pareto: shapes {costs.shape} and {values.shape}")
    if np.isnan(costs).any() or np.isnan(values).any():
        raise ValueError("pareto: a cost or a value is missing")
    no_worse = (costs[:, None] <= costs) & (values[:, None] >= values)  # (by whom, whom)
    better = (costs[:, None] < costs) | (values[:, None] > values)
    return np.logical_not((no_worse & better).any(axis=0))


def pick_smallest(
    points: Sequence[Mapping[str, Any]], max_drop: float, by: str = "latency_ms"
) -> tuple[int | None, str]:
    """Return the cheapest point that passes, without a loss of confidence for having many.

    Points are tested one by one in an order that was fixed before the test set was looked at, each
    at full confidence, up to the first that does not pass: fixed-sequence testing, which keeps the
    chance that any passed point is a false one at that of a single test (Angelopoulos, Bates,
    Candes, Jordan and Lei, Learn then Test, 2021, section 2.3). Points behind it are not tested,
    whatever their intervals say. Among those that passed, any may be chosen.

    Args:
        points: each with "point" (its name), "order", "drop_ci" and `by`.
        max_drop: the drop that is still accepted.
        by: the cost that is to be small.

    Returns:
        (index into `points` or None, why in one sentence).

    Raises:
        ValueError: two points have the same order.
    """
    order = sorted(range(len(points)), key=lambda at: points[at]["order"])
    if len({points[at]["order"] for at in order}) < len(points):
        raise ValueError("points: two have the same order")
    passed: list[int] = []
    stopped: int | None = None
    for at in order:
        if points[at]["drop_ci"][1] > max_drop:
            stopped = at
            break
        passed.append(at)
    if stopped is None:
        end = "all points passed"
    else:
        high = points[stopped]["drop_ci"][1]
        end = (
            f"{points[stopped]['point']} did not pass (its drop may be up to {high:.4f}, asked at "
            f"most {max_drop:.4f}), and what follows it in the fixed order was not tested"
        )
    if not points:
        return None, "there is no point to choose from"
    if not passed:
        return None, f"none passed: {end}"
    best = min(passed, key=lambda at: points[at][by])
    tested = ", ".join(str(points[at]["point"]) for at in passed)
    name = points[best]["point"]
    return best, f"{name} has the least {by} of those that passed ({tested}); {end}"
