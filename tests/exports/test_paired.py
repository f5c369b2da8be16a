from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import optimize, stats

from exports.paired import EXACT_PAIRS, lower_tail, midp, nuisance, paired_bounds, tango


def test_tango_published_values() -> None:
    # Fagerland, Lydersen, Laake, Statistics in Medicine 33 (2014): airway hyper-responsiveness
    # before and after transplantation (Bentur et al. 2009), 1 and 7 discordant of 21
    assert tango(1, 7, 21) == (pytest.approx(-0.517, abs=5e-4), pytest.approx(-0.026, abs=5e-4))
    # PropCIs::scoreci.mp(25, 28, 618, 0.90), which estimates (c - b) / n
    assert tango(28, 25, 618, 0.90) == (
        pytest.approx(-0.0148, abs=5e-5),
        pytest.approx(0.0247, abs=5e-5),
    )


@pytest.mark.parametrize("interval", [tango, midp])
@pytest.mark.parametrize("counts", [(12, 2, 50), (0, 5, 30), (3, 3, 6), (30, 0, 30), (0, 0, 128)])
def test_intervals_are_antisymmetric_and_nested(interval, counts) -> None:  # type: ignore[no-untyped-def]
    b, c, n = counts
    low, high = interval(b, c, n)
    assert -1 <= low <= (b - c) / n <= high <= 1
    assert interval(c, b, n) == (pytest.approx(-high, abs=1e-9), pytest.approx(-low, abs=1e-9))
    wide = interval(b, c, n, 0.99)
    assert wide[0] <= low and high <= wide[1]


@pytest.mark.parametrize("n", [10, 128, 5000])
def test_no_discordant_pair_has_closed_forms(n: int) -> None:
    z2 = 1.959963984540054**2
    assert tango(0, 0, n)[1] == pytest.approx(z2 / (n + z2), abs=1e-9)
    assert midp(0, 0, n)[1] == pytest.approx(1 - 0.05 ** (1 / n), abs=1e-8)
    assert midp(0, 0, n, 0.9)[0] == pytest.approx(0.1 ** (1 / n) - 1, abs=1e-8)


@pytest.mark.parametrize(
    "counts", [(3, 1, 12, 0.5), (0, 2, 9, 0.1), (5, 5, 10, -0.2), (1, 0, 8, 0.4)]
)
def test_lower_tail_is_the_sum_over_all_outcomes(counts: tuple[int, int, int, float]) -> None:
    """Every outcome one by one, each with its own likelihood maximised numerically."""
    b, c, n, d = counts

    def likeliest(lost: int, gained: int) -> float:
        def cost(q: float) -> float:
            p = q + d
            return -stats.multinomial.logpmf(
                [lost, gained, n - lost - gained], n, [p, q, 1 - p - q]
            )

        ends = max(0.0, -d) + 1e-9, (1 - d) / 2 - 1e-9
        return float(optimize.minimize_scalar(cost, bounds=ends, options={"xatol": 1e-10}).x)

    def statistic(lost: int, gained: int) -> float:
        q = likeliest(lost, gained)
        return (lost - gained - n * d) / np.sqrt(n * (2 * q + d * (1 - d)))

    q, observed, total = likeliest(b, c), statistic(b, c), 0.0
    assert float(nuisance(b, c, n, d)) == pytest.approx(q, abs=1e-5)
    for lost, gained in itertools.product(range(n + 1), repeat=2):
        if lost + gained <= n:
            cells = [lost, gained, n - lost - gained]
            chance = stats.multinomial.pmf(cells, n, [q + d, q, 1 - d - 2 * q])
            gap = statistic(lost, gained) - observed
            total += chance * (0.5 if abs(gap) < 1e-5 else float(gap < 0))
    assert lower_tail(b, c, n, d) == pytest.approx(total, abs=1e-5)


def test_a_bound_is_where_half_of_the_error_is_left() -> None:
    for b, c, n in ((4, 1, 60), (12, 9, 200), (0, 3, 40)):
        low, high = midp(b, c, n, 0.9)
        assert (
            lower_tail(b, c, n, high - 1e-6)
            >= 0.05 - 1e-4
            >= lower_tail(b, c, n, high + 1e-6) - 2e-4
        )
        assert lower_tail(c, b, n, -low + 1e-6) < 0.05 + 1e-6


@pytest.mark.parametrize("n", [60, 1000])
def test_bounds_rise_with_what_is_lost_also_where_the_method_changes(n: int) -> None:
    near = [
        (b, total - b)
        for total in (3, EXACT_PAIRS - 1, EXACT_PAIRS, EXACT_PAIRS + 1)
        for b in range(0, total + 1, 3)
    ]
    for b, c in near:
        low, high, _ = paired_bounds(b, c, n)
        more, worse = paired_bounds(b + 1, c, n), paired_bounds(b, c + 1, n)
        assert more[0] > low and more[1] > high
        assert worse[0] < low and worse[1] < high


def test_the_method_is_told() -> None:
    assert "exact" in paired_bounds(EXACT_PAIRS, 0, 500)[2]
    assert "Tango" in paired_bounds(EXACT_PAIRS, 1, 500)[2]
    assert paired_bounds(2, 1, 50)[:2] == midp(2, 1, 50)
    assert paired_bounds(50, 20, 500)[:2] == tango(50, 20, 500)


def test_it_covers_as_often_as_it_says() -> None:
    """Paired answers with known disagreement, where Tango's interval alone covers 98.9 %."""
    random = np.random.default_rng(0)
    for lost, gained, n, least, most in (
        (0.03, 0.02, 50, 0.94, 0.975),
        (0.05, 0.03, 200, 0.93, 0.97),
        (0.10, 0.05, 600, 0.93, 0.97),
    ):
        counts = random.multinomial(n, [lost, gained, 1 - lost - gained], size=2000)[:, :2]
        unique, times = np.unique(counts, axis=0, return_counts=True)
        inside = 0
        for (b, c), seen in zip(unique.tolist(), times.tolist(), strict=True):
            low, high, _ = paired_bounds(b, c, n)
            inside += seen * (low <= lost - gained <= high)
        assert least <= inside / 2000 <= most


def test_counts_that_cannot_be() -> None:
    for call in (tango, midp, paired_bounds):
        with pytest.raises(ValueError, match="2 and 2 discordant of 3"):
            call(2, 2, 3)
        with pytest.raises(ValueError, match="confidence"):
            call(2, 0, 3, 1.0)
