"""Remove structure block by block: each layer solved on the inputs the shrunk prefix gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor, nn

from compression.database import write_back
from compression.groups import UnitLike
from compression.hessian import HessianAccumulator
from compression.keeping import Keeper, walk_on
from compression.layers import Layer
from compression.levels import BranchLike, solve_unit
from compression.scores import METHODS
from compression.sequential import Batch, Progress, SegmentLike


def remove_structure(
    model: nn.Module,
    segments: Sequence[SegmentLike],
    calibration: Callable[[], Iterable[Batch]],
    branches: Sequence[BranchLike],
    sizes: Mapping[str, Sequence[int]],
    *,
    score: str = "obs",
    update: bool = True,
    rel_damp: float = 0.01,
    rows_per_column: float | None = None,
    progress: Progress | None = None,
    keeper: Keeper | None = None,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Zero the columns of the groups that go, in place, the rest of each layer compensating.

    How many groups stay is given; which ones is decided here, on the inputs that the already
    shrunk prefix gives, by structured OBS or another score. The caller then cuts the zeros out
    (models.shrinking).

    Args:
        sizes: by branch, groups that stay of each of its units; branches left out stay whole.
        score: one of :data:`compression.scores.METHODS`.
        update: whether the rest of each layer takes up the work of what goes.
        keeper: where finished segments are kept; None keeps nothing.

    Returns:
        by unit, the groups that stay (int64, rising), for units that lose some; and by consumer
        the loss 1/2 tr(dW H dW^T).
    """
    wanted: dict[str, tuple[UnitLike, int]] = {}
    for branch in branches:
        counts = sizes.get(branch.name, [unit.groups for unit in branch.units])
        for unit, count in zip(branch.units, counts, strict=True):
            if count < unit.groups:
                wanted[unit.consumer] = unit, count
    kept: dict[str, Tensor] = {}
    losses: dict[str, float] = {}

    def visit(name: str, layer: Layer, accumulator: HessianAccumulator) -> None:
        unit, count = wanted[name]
        (found,), loss = solve_unit(
            name, layer, accumulator, unit, [count], rel_damp, scoring, update
        )
        write_back(layer, found.weight)
        kept[unit.name] = found.kept
        losses[name] = loss

    if wanted:
        units = [unit for unit, _ in wanted.values()]
        scoring = METHODS.load(score)(model, segments, calibration, units)
        walk_on(
            model,
            segments,
            calibration,
            list(wanted),
            visit,
            {"kept": kept, "losses": losses},
            rows_per_column=rows_per_column,
            progress=progress,
            keeper=keeper,
        )
    return kept, losses
