"""The rungs of every schedule, and how many steps each is trained."""

from __future__ import annotations

from itertools import pairwise

import pytest

from compression.schedules import METHODS
from compression.training_steps import rung_steps

TARGETS = (0.05, 0.5, 0.75, 0.9, 0.95, 0.99)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("sparsity", TARGETS)
@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_rungs_rise_strictly_and_end_at_the_very_target(
    name: str, sparsity: float, count: int
) -> None:
    rungs = METHODS.load(name)(sparsity, count)
    assert rungs[-1] == sparsity
    assert all(0 < a < b for a, b in pairwise(rungs))


def test_halving() -> None:
    halving = METHODS.load("halving")
    assert halving(0.5) == (0.5,)
    assert halving(0.75) == (0.5, 0.75)
    assert halving(0.9) == (0.5, 0.75, 0.9)
    assert halving(0.95) == (0.5, 0.75, 0.875, 0.95)
    assert halving(0.2) == (0.2,)


def test_one_shot_is_one_rung() -> None:
    assert METHODS.load("one_shot")(0.9, 7) == (0.9,) == METHODS.load("cubic")(0.9, 1)


def test_cubic_is_equation_1_of_zhu_and_gupta() -> None:
    """s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3, with times of their own."""
    s_i, s_f, t_0, dt, n = 0.0, 0.9, 300, 25, 4
    times = [t_0 + k * dt for k in range(1, n + 1)]
    expected = [s_f + (s_i - s_f) * (1 - (t - t_0) / (n * dt)) ** 3 for t in times]
    assert METHODS.load("cubic")(s_f, n) == pytest.approx(expected)
    assert expected == pytest.approx([0.5203125, 0.7875, 0.8859375, 0.9])


def test_steps_as_they_always_were() -> None:
    """A rung's steps depend on it alone: those of the ladder to 90 % of 60 steps at half dense."""
    assert rung_steps((0.5, 0.75, 0.9), steps=60) == (60, 120, 300)
    assert rung_steps((0.9,), steps=60) == (300,)
    assert rung_steps((0.5, 0.75, 0.9), steps=60, density_scaled=False) == (60, 60, 60)
    assert rung_steps((), steps=60) == ()


@pytest.mark.parametrize("total", [0, 1, 7, 480, 1001])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_a_total_is_kept_to_the_step(name: str, scaled: bool, total: int) -> None:
    rungs = METHODS.load(name)(0.9, 5)
    found = rung_steps(rungs, steps=60, density_scaled=scaled, total=total)
    assert sum(found) == total and min(found) >= 0
    whole = sum(1 / (1 - rung) for rung in rungs)
    for rung, steps in zip(rungs, found, strict=True):
        share = 1 / (1 - rung) / whole if scaled else 1 / len(rungs)
        assert abs(steps - total * share) <= 1


def test_the_total_of_a_scaled_ladder_is_divided_as_the_ladder_itself() -> None:
    assert rung_steps((0.5, 0.75, 0.9), steps=0, total=480) == (60, 120, 300)
