"""Choose a size for every branch under measured budgets: solved levels, then a search.

1. Each branch is probed alone: the KL divergence to the teacher with one branch at a level tells
   what that level costs the task; levels between the probes follow their layer loss.
2. Dynamic programming (one budget) or an integer program (several) over these additive costs.
3. Evolutionary refinement with the stitched model's own divergence (`compression.search`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compression.allocation import dynamic_programming, integer_program, require_reachable
from compression.keeping import Keeper, part_of
from compression.levels import BranchLike, Database, Size, Stitcher
from compression.losses import temperature_kl
from compression.search import Levels, SearchSettings, evolve
from compression.sequential import Batch, Progress

Costs = Mapping[str, Sequence[Sequence[float]]]


@dataclass(frozen=True)
class Allocation:
    """Sizes by branch; ``kl_start`` of the additive solution, ``kl`` after the search, in nats."""

    sizes: dict[str, Size]
    kl_start: float
    kl: float
    costs: dict[str, float]


def _merged(batches: Sequence[Batch], rows: int) -> list[Batch]:
    """Neighbouring batches of equal shapes joined up to ``rows``: fewer launches on a GPU."""
    found: list[Batch] = []
    for batch in batches:
        last = found[-1] if found else None
        if (
            last is not None
            and len(last[0]) + len(batch[0]) <= rows
            and all(a.shape[1:] == b.shape[1:] for a, b in zip(last, batch, strict=True))
        ):
            found[-1] = tuple(torch.cat(pair) for pair in zip(last, batch, strict=True))
        else:
            found.append(batch)
    return found


class _Judge:
    """Mean KL(teacher || stitched student) on fixed batches, at temperature 1."""

    def __init__(
        self,
        stitcher: Stitcher,
        teacher: nn.Module,
        batches: Sequence[Batch],
        device: torch.device,
        autocast_bf16: bool,
    ) -> None:
        self.stitcher = stitcher
        self.batches = _merged(batches, 128) if device.type == "cuda" else list(batches)
        self.kind, self.bf16 = device.type, autocast_bf16
        self.targets = [self._run(teacher, batch) for batch in self.batches]

    @torch.no_grad()
    def _run(self, model: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast(self.kind, torch.bfloat16, enabled=self.bf16):
            return model(*batch).float()

    def __call__(self, levels: Levels, share: float = 1.0) -> float:
        model = self.stitcher.set(levels)
        count = max(1, round(share * len(self.batches)))
        total = torch.zeros((), device=self.targets[0].device)
        rows = 0
        for batch, target in zip(self.batches[:count], self.targets[:count], strict=True):
            total += temperature_kl(self._run(model, batch), target, 1.0) * len(target)
            rows += len(target)
        return float(total) / rows


def probe(
    database: Database,
    branches: Sequence[BranchLike],
    judge: _Judge,
    keeper: Keeper | None = None,
) -> list[list[float]]:
    """The divergence that each level of each branch costs by itself, in nats.

    Measured at the middle and the smallest level; between them linear in the layer loss.
    """
    kept = None if keeper is None else keeper.load()
    base = judge((0,) * len(branches)) if kept is None else kept["base"]
    found: list[list[float]] = [] if kept is None else kept["found"]
    for at, branch in list(enumerate(branches))[len(found) :]:
        losses = database.losses[branch.name]
        last = len(losses) - 1
        points = [(losses[0], 0.0)]
        for level in sorted({(last + 1) // 2, last} - {0}):
            only = [0] * len(branches)
            only[at] = level
            kl = max(judge(tuple(only)) - base, 0.0)
            points.append((losses[level], max(kl, points[-1][1])))
        found.append([_interpolated(points, loss) for loss in losses])
        if keeper is not None and (keeper.due() or at + 1 == len(branches)):
            keeper.save({"base": base, "found": found})
    judge((0,) * len(branches))
    return found


def _interpolated(points: Sequence[tuple[float, float]], loss: float) -> float:
    for (a, low), (b, high) in itertools.pairwise(points):
        if loss <= b:
            return low + (high - low) * (loss - a) / max(b - a, 1e-30)
    return points[-1][1]


def allocate(
    model: nn.Module,
    teacher: nn.Module,
    branches: Sequence[BranchLike],
    database: Database,
    costs: Costs,
    budgets: Mapping[str, float],
    batches: Sequence[Batch],
    *,
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
        batches: the shots, class-balanced in their order; what is optimised is judged on them.
        search: None stops at the additive solution.
        keeper: where probes and generations of the search are kept; None keeps nothing.

    Raises:
        UnreachableBudget, CompressionError: see :mod:`compression.allocation`.
    """
    for name, budget in budgets.items():  # said before anything is computed
        require_reachable(costs[name], budget, name)
    stitcher = Stitcher(model, branches, database)
    judge = _Judge(stitcher, teacher, batches, device, autocast_bf16)
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
