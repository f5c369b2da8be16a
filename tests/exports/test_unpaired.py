"""The unpaired interval against published values, the likelihood and exact coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats

from exports.unpaired import MOST, examples_to_tell, likeliest, miettinen_nurminen


@pytest.mark.parametrize(
    ("counts", "published"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), 873-890, table II, method 6
        ((56, 70, 48, 80), (0.0528, 0.3382)),
        ((9, 10, 3, 10), (0.1700, 0.8406)),
    ],
)
def test_published_values(
    counts: tuple[int, int, int, int], published: tuple[float, float]
) -> None:
    assert miettinen_nurminen(*counts) == pytest.approx(published, abs=6e-5)


@pytest.mark.parametrize("counts", [(56, 70, 48, 80), (0, 9, 4, 30), (7, 7, 3, 11), (5, 9, 0, 4)])
@pytest.mark.parametrize("d", [-0.4, -0.05, 0.0, 0.1, 0.45])
def test_the_closed_form_is_the_maximum_of_the_likelihood(
    counts: tuple[int, int, int, int], d: float
) -> None:
    x, m, y, n = counts

    def cost(q: float) -> float:
        return -stats.binom.logpmf(x, m, q + d) - stats.binom.logpmf(y, n, q)

    ends = max(0.0, -d) + 1e-9, min(1.0, 1 - d) - 1e-9
    best = optimize.minimize_scalar(cost, bounds=ends, method="bounded", options={"xatol": 1e-11})
    p, q = likeliest(x, m, y, n, d)
    assert p - q == pytest.approx(d)
    inside = min(max(q, ends[0]), ends[1])
    assert cost(inside) <= best.fun + 1e-9


def test_antisymmetric_and_nested() -> None:
    low, high = miettinen_nurminen(30, 40, 50, 90)
    assert miettinen_nurminen(50, 90, 30, 40) == pytest.approx((-high, -low), abs=1e-9)
    wide = miettinen_nurminen(30, 40, 50, 90, 0.99)
    assert wide[0] < low < 30 / 40 - 50 / 90 < high < wide[1]


@pytest.mark.parametrize(("m", "n", "p", "q"), [(120, 40, 0.9, 0.9), (60, 60, 0.8, 0.7)])
def test_exact_coverage(m: int, n: int, p: float, q: float) -> None:
    """Every outcome that has any weight, with its interval: no draws."""
    first = np.arange(m + 1)[stats.binom.pmf(np.arange(m + 1), m, p) > 1e-5]
    second = np.arange(n + 1)[stats.binom.pmf(np.arange(n + 1), n, q) > 1e-5]
    covered = sum(
        stats.binom.pmf(x, m, p) * stats.binom.pmf(y, n, q)
        for x in first
        for y in second
        if (bounds := miettinen_nurminen(int(x), m, int(y), n))[0] <= p - q <= bounds[1]
    )
    assert 0.935 <= covered <= 0.97


def test_the_number_that_would_tell_does_tell() -> None:
    for rate in (0.80, 0.88):
        needed = examples_to_tell(668, 768, rate, 0.04, 0.95)
        low, high = miettinen_nurminen(668, 768, round(rate * needed), needed)
        assert low > 0.04 or high <= 0.04
        few = needed // 2
        low, high = miettinen_nurminen(668, 768, round(rate * few), few)
        assert low <= 0.04 < high
    assert examples_to_tell(668, 768, 0.83, 0.04, 0.95) == MOST


@pytest.mark.parametrize("counts", [(5, 4, 1, 2), (1, 2, -1, 2), (0, 0, 1, 2)])
def test_counts_that_cannot_be(counts: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="proportions"):
        miettinen_nurminen(*counts)
