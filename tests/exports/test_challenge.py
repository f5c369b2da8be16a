from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from exports.challenge import challenge

N = 1000
RIGHT = np.arange(N) < 800


def met(lost: int = 0, gained: int = 0, size: int = 1000, ratio: float = 1.0) -> dict[str, Any]:
    """A challenger that loses and gains some answers, against a champion of 1000 bytes."""
    new = RIGHT.copy()
    new[:lost] = False
    new[N - gained :] = True
    return challenge(
        {"bytes": 1000, "latency_ms": 2.0},
        {"bytes": size, "latency_ms": 2.0 / ratio},
        champion_right=RIGHT,
        challenger_right=new,
        latency_ratio=ratio,
        latency_ci=[ratio - 0.05, ratio + 0.05],
        equal_within=0.01,
        confidence=0.95,
    )


@pytest.mark.parametrize(
    ("changes", "promoted"),
    [
        ({}, False),  # the same again: a draw
        ({"size": 500}, True),
        ({"ratio": 1.5}, True),
        ({"size": 997}, False),  # within what metadata moves
        ({"ratio": 1.04}, False),  # within noise
        ({"size": 500, "ratio": 0.7}, False),  # smaller, but slower
        ({"size": 2000, "ratio": 2.0}, False),  # faster, but bigger
        ({"lost": 30, "size": 500, "ratio": 2.0}, False),  # worse
        ({"lost": 10, "gained": 8, "size": 500}, False),  # cannot be told from worse
        ({"gained": 20}, True),
        ({"gained": 20, "size": 1100, "ratio": 0.9}, True),  # better; its budgets held
        ({"gained": 3}, False),  # not surely better
    ],
)
def test_who_takes_the_place(changes: dict[str, Any], promoted: bool) -> None:
    found = met(**changes)
    assert found["promote"] is promoted
    assert len(found["reasons"]) == 3


def test_the_comparison_is_told() -> None:
    found = met(lost=2, gained=12, size=500, ratio=2.0)
    told = found["comparison"]
    assert told["n"] == N and told["gain"] == pytest.approx(0.01)
    assert told["gain_ci"][0] < 0.01 < told["gain_ci"][1]
    assert told["mcnemar_p"] == pytest.approx(2 * (1 + 14 + 91) / 2**14)
    assert (told["bytes_ratio"], told["latency_ratio"], told["latency_ci"]) == (
        2.0,
        2.0,
        [1.95, 2.05],
    )
    assert [reason.split(":")[0] for reason in found["reasons"]] == [
        "it is more accurate",
        "it is smaller",
        "it is faster",
    ]
    worse = met(lost=30, size=2000, ratio=0.5)["reasons"]
    assert [reason.split(":")[0] for reason in worse] == [
        "it may be less accurate",
        "it is bigger",
        "it is slower",
    ]


def test_a_bound_of_nothing_is_named() -> None:
    with pytest.raises(ValueError, match="equal_within"):
        challenge(
            {"bytes": 1, "latency_ms": 1},
            {"bytes": 1, "latency_ms": 1},
            champion_right=RIGHT,
            challenger_right=RIGHT,
            latency_ratio=1,
            latency_ci=(1, 1),
            equal_within=0,
            confidence=0.95,
        )
