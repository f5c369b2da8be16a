from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from exports.front import pareto, pick_smallest


def test_front_is_what_nothing_beats() -> None:
    random = np.random.default_rng(0)
    costs, values = random.integers(0, 6, 40), random.integers(0, 6, 40)
    expected = [
        not any(
            (x <= cost and y >= value) and (x < cost or y > value)
            for x, y in zip(costs, values, strict=True)
        )
        for cost, value in zip(costs, values, strict=True)
    ]
    assert pareto(costs, values).tolist() == expected and 0 < sum(expected) < 40
    assert pareto(np.array([1.0, 1.0]), np.array([0.5, 0.5])).tolist() == [True, True]
    assert pareto(np.array([]), np.array([])).tolist() == []
    with pytest.raises(ValueError, match="shapes"):
        pareto(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="missing"):
        pareto(np.array([1, np.nan]), np.zeros(2))


def point(name: str, order: int, high: float, ms: float) -> dict[str, Any]:
    return {"point": name, "order": order, "drop_ci": [high - 0.03, high], "latency_ms": ms}


def test_pick_stops_at_the_first_that_does_not_pass() -> None:
    points = [
        point("4x", 3, 0.001, 1),  # would pass, and is not tested
        point("1.5x", 0, 0.004, 9),
        point("3x", 2, 0.03, 3),
        point("2x", 1, 0.01, 6),
    ]
    at, why = pick_smallest(points, 0.01)
    assert at == 3
    assert "2x has the least latency_ms" in why and "(1.5x, 2x)" in why and "3x did not" in why
    assert pick_smallest(points, 0.05)[0] == 0
    assert "all points passed" in pick_smallest(points, 0.05)[1]
    none, why = pick_smallest(points, 0.001)
    assert none is None and "none passed: 1.5x did not pass" in why
    assert pick_smallest([], 0.01)[0] is None


def test_pick_is_the_cheapest_of_those_that_passed() -> None:
    points = [point("a", 0, 0.0, 2), point("b", 1, 0.0, 5), point("c", 2, 0.5, 1)]
    points[0]["bytes"], points[1]["bytes"] = 9, 3
    assert pick_smallest(points, 0.01)[0] == 0
    assert pick_smallest(points, 0.01, by="bytes")[0] == 1


def test_an_order_must_be_one() -> None:
    with pytest.raises(ValueError, match="same order"):
        pick_smallest([point("a", 0, 0, 1), point("b", 0, 0, 1)], 0.01)
