"""The area against brute force, its variance against its definition, its interval by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from exports.auroc import auroc, auroc_gap


def groups(m: int, n: int, area: float, seed: int, spread: float = 1.0) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(seed)
    apart = norm.ppf(area) * np.hypot(1.0, spread)
    return random.normal(apart, 1.0, m), random.normal(0.0, spread, n)


def pairs(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    return (high[:, None] > low) + 0.5 * (high[:, None] == low)


@pytest.mark.parametrize("round_to", [None, 0])
def test_the_area_is_the_share_of_ordered_pairs(round_to: int | None) -> None:
    high, low = groups(37, 23, 0.8, seed=0)
    if round_to is not None:  # many ties
        high, low = high.round(round_to), low.round(round_to)
    found, won = auroc(high, low), pairs(high, low)
    assert found.value == pytest.approx(won.mean(), abs=1e-12)
    known = roc_auc_score([1] * 37 + [0] * 23, np.concatenate([high, low]))
    assert found.value == pytest.approx(known, abs=1e-12)
    # DeLong's definition: the spread of each example's share of won pairs
    truth = won.mean(1).var(ddof=1) / 37 + won.mean(0).var(ddof=1) / 23
    assert found.variance() == pytest.approx(truth, rel=1e-9)


def test_the_covariance_is_what_a_paired_bootstrap_sees() -> None:
    random = np.random.default_rng(1)
    high, low = groups(120, 90, 0.8, seed=2)
    high2, low2 = high + random.normal(0, 0.7, 120), low + random.normal(0, 0.7, 90)
    one, other = auroc(high, low), auroc(high2, low2)
    areas = []
    for _ in range(2000):
        rows, columns = random.integers(120, size=120), random.integers(90, size=90)
        areas.append([pairs(h[rows], x[columns]).mean() for h, x in ((high, low), (high2, low2))])
    seen = np.cov(np.array(areas).T)
    assert one.covariance(other) == pytest.approx(seen[0, 1], rel=0.12)
    gap, low_end, high_end = auroc_gap(one, other)
    assert gap == one.value - other.value
    differences = np.subtract(*np.array(areas).T)
    width = 2 * 1.96 * differences.std()
    assert high_end - low_end == pytest.approx(width, rel=0.12)


@pytest.mark.parametrize(
    ("m", "n", "area", "spread"),
    [(300, 100, 0.7, 1.0), (300, 100, 0.9, 2.0), (300, 100, 0.985, 1.0), (100, 50, 0.995, 0.35)],
)
def test_the_interval_covers(m: int, n: int, area: float, spread: float) -> None:
    held = 0
    for seed in range(400):
        low, high = auroc(*groups(m, n, area, seed, spread)).interval(0.95)
        assert 0 <= low < high <= 1
        held += low <= area <= high
    assert held / 400 >= 0.925  # three standard errors below 0.95 are 0.917
    if area < 0.95:
        assert held / 400 <= 0.98


def test_groups_that_do_not_overlap_still_have_an_interval() -> None:
    apart = auroc(np.arange(10, 30), np.arange(10))
    assert apart.value == 1
    low, high = apart.interval(0.95)
    assert (0.7 < low < 0.99) and high == 1
    below = auroc(np.arange(10), np.arange(10, 30))
    assert below.interval(0.95) == pytest.approx((0, 1 - low), abs=1e-6)
    gap, low, high = auroc_gap(apart, apart)
    assert gap == 0 and low < 0 < high


def test_scores_that_are_all_the_same_tell_nothing() -> None:
    low, high = auroc(np.ones(50), np.ones(40)).interval()
    assert low < 0.5 < high


@pytest.mark.parametrize(
    ("high", "low"), [([1.0], [0.0, 1.0]), ([1.0, 2.0], []), ([1.0, np.nan], [0.0, 1.0])]
)
def test_too_few_scores_and_none_numbers_are_refused(high: list[float], low: list[float]) -> None:
    with pytest.raises(ValueError, match="two finite scores"):
        auroc(np.array(high), np.array(low))
