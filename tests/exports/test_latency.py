from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from exports.latency import Timings, _resampled


def test_rounds_are_resampled_in_pairs() -> None:
    """Whatever slows both models of a round alike leaves the ratio as it is."""
    fast = np.random.default_rng(0).lognormal(0, 0.5, 51)
    assert Timings({"a": 3 * fast, "b": fast}).ratio("a", "b") == pytest.approx((3, 3, 3))


def test_blocks_are_neighbours_in_a_circle() -> None:
    rows = _resampled(10, 4, 200, np.random.default_rng(0))
    assert rows.shape == (200, 10) and rows.min() == 0 and rows.max() == 9
    for start in (0, 4):
        block = rows[:, start : start + 4]
        assert (np.diff(block, axis=1) % 10 == 1).all()
    assert len(np.unique(_resampled(10, 1, 200, np.random.default_rng(0))[:, :2] @ [10, 1])) > 80


def test_disturbances_that_last_widen_the_interval() -> None:
    random, wide, narrow, inside = np.random.default_rng(1), [], [], 0
    for seed in range(60):
        times = []
        for middle in (2.0, 1.0):
            drift = 0.05 * lfilter([1.0], [1.0, -0.8], random.normal(size=100))
            times.append(middle * np.exp(drift))
        shuffle = random.permutation(100)  # the same rounds without their memory
        _, low, high = Timings({"a": times[0], "b": times[1]}, seed, 300).ratio("a", "b")
        mixed = Timings({"a": times[0][shuffle], "b": times[1][shuffle]}, seed, 300)
        wide.append(high - low)
        narrow.append(np.subtract(*mixed.ratio("a", "b")[:0:-1]))
        inside += low <= 2 <= high
    assert np.mean(wide) > 1.3 * np.mean(narrow)
    assert inside >= 51  # 60 x 0.95 less three standard errors and more; one by one: 45


def test_a_seed_gives_one_interval() -> None:
    random = np.random.default_rng(3)
    rounds = {"a": random.lognormal(1, 0.1, 40), "b": random.lognormal(0, 0.1, 40)}
    ratio, low, high = Timings(rounds, seed=5).ratio("a", "b")
    assert (ratio, low, high) == Timings(rounds, seed=5).ratio("a", "b")
    assert ratio == np.median(rounds["a"]) / np.median(rounds["b"]) and low < ratio < high
    one = Timings({"a": np.array([4.0]), "b": np.array([2.0])})
    assert one.ratio("a", "b") == (2.0, 2.0, 2.0)
