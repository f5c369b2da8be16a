"""Dynamic programming over what each level costs.

SPDY (Frantar and Alistarh 2022, arXiv 2201.13096, section 3.1): the multiple-choice knapsack over a
discretised budget, here of nonzeros. SPDY scales each layer's costs by coefficients that a random
search finds on the stitched model; ours measures them. Costs taken with all other layers dense do
not add up where every layer loses nine weights of ten, so they are taken around an allocation that
keeps the total: what the divergence from the teacher gains or loses when one layer keeps half, or
half as much again, and in proportion to its layer loss between and beyond. The first such
allocation is the better of the even share and one threshold over all scores (`global`); the
program's answer is the next one, while it is better. Where both of them answer hardly better than
by chance, nothing around them tells layers apart: then the costs are those with all other layers as
they are, after all.
"""

from __future__ import annotations

from collections.abc import Sequence

from compression.allocation import dynamic_programming
from compression.allocators import threshold
from compression.request import Request, ZeroLevels
from compression.search import Levels

_TURNS = 2
_LOST = 0.5  # of what a model diverges that sees nothing: from here on it tells nothing
_BUCKETS = 100_000


def program(costs: Sequence[Sequence[float]], levels: ZeroLevels) -> Levels:
    """The levels of the least summed cost; exact where the budget has few enough weights."""
    room = levels.budget - sum(map(min, levels.kept))
    picked = dynamic_programming(
        costs, levels.kept, levels.budget, name="nonzeros", buckets=min(max(room, 1), _BUCKETS)
    )
    return tuple(picked)


def solve(request: Request) -> Levels:
    """Levels whose measured costs sum to the least, not worse than where they are taken around.

    Raises:
        UnreachableBudget: no choice of levels has so few nonzeros.
    """
    if request.additive is not None:
        return request.additive
    levels, judge = request.levels, request.judge
    base = min((levels.even, request.nearest(threshold.allocate(request))), key=judge)
    if judge(base) > _LOST * judge.blind:
        base = program(request.costs_alone, levels)
    for turn in range(_TURNS):
        if judge(base) > _LOST * judge.blind:
            break
        picked = program(request.costs_around(base, turn), levels)
        if judge(picked) >= judge(base):
            break
        base = picked
    request.additive = base
    return base


def allocate(request: Request) -> dict[str, int]:
    """Zeros a layer; raises as :func:`solve`."""
    return request.chosen(solve(request))
