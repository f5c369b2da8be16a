"""Choose a size for every branch under measured budgets: solved levels, then a search.

1. Each branch is probed alone: the KL divergence to the teacher with one branch at a level tells
   what that level costs the task; levels between the probes follow their layer loss.
2. Dynamic programming (one budget) or an integer program (several) over these additive costs.
3. Evolutionary refinement with the stitched model's own divergence (`compression.search`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from compression.allocation import dynamic_programming, integer_program, require_reachable
from compression.database import Database, Size, Stitcher
from compression.judge import Judge, probe
from compression.keeping import Keeper, part_of
from compression.levels import BranchLike
from compression.search import Levels, SearchSettings, evolve
from compression.sequential import Batch, Progress, SegmentLike

Costs = Mapping[str, Sequence[Sequence[float]]]


@dataclass(frozen=True)
class Allocation:
    """Sizes by branch; ``kl_start`` of the additive solution, ``kl`` after the search, in nats."""

    sizes: dict[str, Size]
    kl_start: float
    kl: float
    costs: dict[str, float]


def allocate(
    model: nn.Module,
    teacher: nn.Module,
    branches: Sequence[BranchLike],
    database: Database,
    costs: Costs,
    budgets: Mapping[str, float],
    batches: Sequence[Batch],
    *,
    segments: Sequence[SegmentLike] = (),
    search: SearchSettings | None,
    device: torch.device,
    autocast_bf16: bool,
    progress: Progress | None = None,
    keeper: Keeper | None = None,
) -> Allocation:
    """Sizes of all branches that keep every budget at the least divergence from the teacher.

    Args:
        model: the one the database was built on; restored at the end.
        costs: by budget's name, of each level of each branch, in the order of ``branches``.
        budgets: upper bounds on the summed costs.
        segments: of the model, in execution order; without them probes take longer.
        batches: the shots, class-balanced in their order; what is optimised is judged on them.
        search: None stops at the additive solution.
        keeper: where probes and generations of the search are kept; None keeps nothing.

    Raises:
        UnreachableBudget, CompressionError: see :mod:`compression.allocation`.
    """
    for name, budget in budgets.items():  # said before anything is computed
        require_reachable(costs[name], budget, name)
    stitcher = Stitcher(model, branches, database)
    judge = Judge(stitcher, teacher, batches, device, autocast_bf16, segments)
    losses = probe(database, branches, judge, part_of(keeper, "probe"))

    def spent(levels: Levels, name: str) -> float:
        return sum(item[level] for item, level in zip(costs[name], levels, strict=True))

    if len(budgets) == 1:
        ((name, budget),) = budgets.items()
        start = dynamic_programming(losses, costs[name], budget, name=name)
    else:
        start = integer_program(losses, costs, budgets)
    levels: Levels = tuple(start)
    kl_start = kl = judge(levels)
    if search is not None:
        levels, history = evolve(
            start,
            [len(item) for item in losses],
            lambda found: all(spent(found, name) <= limit for name, limit in budgets.items()),
            judge,
            search,
            progress,
            part_of(keeper, "search"),
        )
        kl = history[-1]
    stitcher.set((0,) * len(branches))
    return Allocation(
        {
            branch.name: database.sizes[branch.name][level]
            for branch, level in zip(branches, levels, strict=True)
        },
        kl_start,
        kl,
        {name: spent(levels, name) for name in costs},
    )
