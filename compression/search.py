"""Evolutionary refinement of an allocation under budgets, judged by the model itself.

EvoPress (Sieberling et al., arXiv 2410.14649, algorithm 1): a single parent, offspring by level
switches that keep the budget, and selection in stages, so that most offspring are judged on few
samples and only the best on all. Additive layer losses choose the start; the search sees what they
cannot, how levels of different layers work together.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compression.keeping import Keeper

Levels = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """``offspring`` a generation; ``stages``: (survivors, share of the samples), last keeps 1."""

    generations: int
    offspring: int
    stages: tuple[tuple[int, float], ...] = ((4, 0.25), (1, 1.0))
    most_switches: int = 3
    seed: int = 0


def evolve(
    start: Sequence[int],
    counts: Sequence[int],
    feasible: Callable[[Levels], bool],
    fitness: Callable[[Levels, float], float],
    settings: SearchSettings,
    progress: Callable[[int, int, str], None] | None = None,
    keeper: Keeper | None = None,
) -> tuple[Levels, list[float]]:
    """Improve an allocation.

    Args:
        start: a feasible level an item; level 0 is the largest size, so it costs the most.
        counts: levels an item has.
        feasible: whether an allocation keeps every budget.
        fitness: of (allocation, share of the samples), smaller is better.
        keeper: where finished generations are kept; None keeps nothing.

    Returns:
        the best allocation and its fitness on all samples after each generation, the start's first.
    """
    s, chance = settings, random.Random(settings.seed)
    kept = None if keeper is None else keeper.load()
    if kept is None:
        parent = tuple(start)
        best = fitness(parent, 1.0)
        history = [best]
    else:
        parent, best, history = kept["parent"], kept["best"], kept["history"]
        chance.setstate(kept["random"])
    for generation in range(len(history) - 1, s.generations):
        children: set[Levels] = set()
        for _ in range(4 * s.offspring):
            if len(children) == s.offspring:
                break
            switches = min(chance.randint(1, s.most_switches) for _ in range(2))
            child = _switched(parent, counts, feasible, switches, chance)
            if child is not None and child != parent:
                children.add(child)
        pool = sorted(children)
        judged = [(0.0, child) for child in pool]
        for survivors, share in s.stages:
            judged = sorted((fitness(child, share), child) for _, child in judged)[:survivors]
        if judged and judged[0][0] < best:
            best, parent = judged[0]
        history.append(best)
        if keeper is not None and keeper.due():
            state = {"parent": parent, "best": best, "history": history}
            keeper.save({**state, "random": chance.getstate()})
        if progress is not None:
            progress(generation + 1, s.generations, f"search, KL {best:.4g}")
    return parent, history


def _switched(
    parent: Levels,
    counts: Sequence[int],
    feasible: Callable[[Levels], bool],
    switches: int,
    chance: random.Random,
) -> Levels | None:
    """A child with a few items a level larger and others smaller until every budget holds."""
    child = list(parent)
    grown: set[int] = set()
    for _ in range(switches):
        larger = [i for i, level in enumerate(child) if level > 0]
        if not larger:
            return None
        i = chance.choice(larger)
        child[i] -= chance.randint(1, min(2, child[i]))
        grown.add(i)
    while not feasible(tuple(child)):
        smaller = [i for i, n in enumerate(counts) if child[i] + 1 < n and i not in grown]
        if not smaller:
            return None
        child[chance.choice(smaller)] += 1
    # what the last step freed may pay for growing something else again
    for i in chance.sample(range(len(child)), len(child)):
        while child[i] > 0:
            child[i] -= 1
            if not feasible(tuple(child)):
                child[i] += 1
                break
            if tuple(child) == parent:
                child[i] += 1
                break
    return tuple(child)
