from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from exports import power
from exports.paired import paired_bounds
from exports.power import chances, decisions, examples_to_settle


def test_decisions_agree_with_the_interval() -> None:
    random = np.random.default_rng(1)
    for _ in range(400):
        n = int(random.choice([20, 50, 100, 2000]))
        total = int(random.integers(0, min(70, n)))
        b = int(random.integers(0, total + 1))
        bound = float(random.choice([0, 0.005, 0.02, 0.05]))
        low, high, _ = paired_bounds(b, total - b, n)
        passes, fails = decisions(n, np.array([total - b]), bound)
        assert (b <= passes[0], b >= fails[0]) == (high <= bound, low > bound)


@pytest.mark.parametrize(("n", "p", "q", "bound"), [(30, 0.2, 0.05, 0.25), (60, 0.01, 0.0, 0.06)])
def test_chances_are_the_sum_over_all_outcomes(n: int, p: float, q: float, bound: float) -> None:
    expected = np.zeros(2)
    for b in range(n + 1):
        for c in range(n + 1 - b):
            chance = stats.multinomial.pmf([b, c, n - b - c], n, [p, q, 1 - p - q])
            if chance > 1e-12:
                low, high, _ = paired_bounds(b, c, n)
                expected += chance * np.array([high <= bound, low > bound])
    assert chances(n, p, q, bound) == pytest.approx(tuple(expected), abs=1e-7)


def test_many_examples_are_as_the_normal_approximation_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = chances(6000, 0.12, 0.10, 0.015)
    monkeypatch.setattr(power, "_MANY_DISCORDANT", 0)
    assert chances(6000, 0.12, 0.10, 0.015) == pytest.approx(exact, abs=0.005)


@pytest.mark.parametrize(
    ("lost", "gained", "n", "bound", "outcome"),
    [(6, 6, 600, 0.01, "pass"), (20, 8, 300, 0.02, "fail"), (0, 0, 50, 0.02, "pass")],
)
def test_told_size_settles_it_as_often_as_asked(
    lost: int, gained: int, n: int, bound: float, outcome: str
) -> None:
    told = examples_to_settle(lost, gained, n, bound)
    assert told is not None and told["more"] == told["n"] - n and told["power"] == 0.8
    assert f"as a {outcome}" in told["text"] and f"{told['more']:,} more" in told["text"]
    random, draws = np.random.default_rng(0), 1500
    rates = [lost / n, gained / n, 1 - (lost + gained) / n]
    counts = random.multinomial(told["n"], rates, draws)[:, :2]
    unique, times = np.unique(counts, axis=0, return_counts=True)
    settled = 0
    for (b, c), seen in zip(unique.tolist(), times.tolist(), strict=True):
        low, high, _ = paired_bounds(b, c, told["n"])
        settled += seen * (high <= bound or low > bound)
    if lost + gained:
        assert settled / draws == pytest.approx(0.8, abs=0.04)
    else:  # models that never differ: the smallest set that can pass
        assert settled == draws
        assert sum(chances(told["n"] - 1, 0, 0, bound)) == 0
    assert sum(chances(int(told["n"] * 0.8), *rates[:2], bound)) < 0.8


def test_nothing_is_told_where_nothing_would_help() -> None:
    assert examples_to_settle(0, 5, 600, 0.02) is None  # passes already
    assert examples_to_settle(60, 0, 600, 0.02) is None  # fails already
    assert examples_to_settle(10, 4, 300, 0.02) is None  # just as much as is asked


def test_probabilities_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="chances"):
        chances(10, 0.7, 0.6, 0.01)
