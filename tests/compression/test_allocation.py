"""Allocation against brute force; the search keeps budgets and improves."""

from __future__ import annotations

import itertools
import random

import pytest

from compression.allocation import dynamic_programming, integer_program
from compression.errors import CompressionError, UnreachableBudget
from compression.search import SearchSettings, evolve


def random_items(chance: random.Random, items: int, levels: int):
    losses = [sorted(chance.random() for _ in range(levels)) for _ in range(items)]
    costs = [sorted((chance.random() for _ in range(levels)), reverse=True) for _ in range(items)]
    return losses, costs


def total(table, levels):
    return sum(item[level] for item, level in zip(table, levels, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_both_solvers_find_the_brute_force_optimum_of_three_layers(seed):
    chance = random.Random(seed)
    losses, costs = random_items(chance, 3, 4)
    least, most = sum(min(c) for c in costs), sum(max(c) for c in costs)
    budget = chance.uniform(least, most)
    best = min(
        total(losses, levels)
        for levels in itertools.product(range(4), repeat=3)
        if total(costs, levels) <= budget
    )
    by_dp = dynamic_programming(losses, costs, budget)
    by_ip = integer_program(losses, {"time": costs}, {"time": budget})
    assert total(costs, by_dp) <= budget + 1e-9
    assert total(costs, by_ip) <= budget + 1e-6
    assert total(losses, by_dp) == pytest.approx(best, abs=2e-3)
    assert total(losses, by_ip) == pytest.approx(best, rel=2e-4)


def test_a_budget_that_the_cheapest_use_up_buys_nothing_more():
    losses, costs = [[0.0, 1.0], [0.0, 0.5, 1.0]], [[5.0, 1.0], [3.0, 2.0, 2.0]]
    assert dynamic_programming(losses, costs, 3.0) == [1, 1]
    assert dynamic_programming([[0.0, 1.0]], [[5.0, 1.0]], 1.0) == [1]
    assert (
        dynamic_programming([], [], 1.0) == integer_program([], {"time": []}, {"time": 1.0}) == []
    )


@pytest.mark.parametrize("seed", range(10))
def test_two_budgets_at_once_match_brute_force(seed):
    chance = random.Random(100 + seed)
    losses, costs = random_items(chance, 3, 4)
    _, other = random_items(chance, 3, 4)
    budgets = {"time": 0.6 * sum(c[0] for c in costs), "bytes": 0.6 * sum(c[0] for c in other)}
    fits = [
        total(losses, levels)
        for levels in itertools.product(range(4), repeat=3)
        if total(costs, levels) <= budgets["time"] and total(other, levels) <= budgets["bytes"]
    ]
    if not fits:
        with pytest.raises(CompressionError):
            integer_program(losses, {"time": costs, "bytes": other}, budgets)
        return
    found = integer_program(losses, {"time": costs, "bytes": other}, budgets)
    assert total(losses, found) == pytest.approx(min(fits), rel=2e-4)


def test_an_unreachable_budget_says_what_is_reachable():
    with pytest.raises(UnreachableBudget, match=r"milliseconds = 0\.5 .*1\.5 is the least"):
        dynamic_programming([[0, 1], [0, 1]], [[2, 1], [2, 0.5]], 0.5, name="milliseconds")
    with pytest.raises(UnreachableBudget, match="bytes"):
        integer_program([[0, 1]], {"bytes": [[2, 1]]}, {"bytes": 0.5})


def test_the_search_keeps_the_budget_and_improves_on_interacting_layers():
    losses, costs = random_items(random.Random(2), 7, 5)

    def truth(levels, share=1.0):  # neighbours hurt each other, which no additive cost sees
        pairs = itertools.pairwise(levels)
        return total(losses, levels) + 0.1 * sum(a * b for a, b in pairs)

    budget = 0.5 * sum(c[0] for c in costs)
    start = dynamic_programming(losses, costs, budget)
    settings = SearchSettings(generations=40, offspring=12, seed=1)
    found, history = evolve(
        start, [5] * 7, lambda levels: total(costs, levels) <= budget, truth, settings
    )
    assert total(costs, found) <= budget
    assert history == sorted(history, reverse=True)
    assert truth(found) == pytest.approx(history[-1])
    every = itertools.product(range(5), repeat=7)
    best = min(truth(levels) for levels in every if total(costs, levels) <= budget)
    assert best < 0.95 * history[0], "the additive solution must leave something to find"
    assert history[-1] < best + 0.1 * (history[0] - best)
    again, _ = evolve(
        start, [5] * 7, lambda levels: total(costs, levels) <= budget, truth, settings
    )
    assert again == found, "the same seed gives the same allocation"
