"""The database of levels: every branch solved at every size, so that a model can be stitched.

ZipLM (arXiv 2302.04089) allocates over such a database (`compression.database`). A level is a size
of one residual branch; what it changes is the weight and bias of the layers that read the removed
groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from compression.database import Database, Size, with_bias
from compression.errors import CompressionError
from compression.groups import Score, UnitLike
from compression.hessian import HessianAccumulator, damp
from compression.keeping import Keeper
from compression.layers import Layer
from compression.scores import METHODS
from compression.sequential import Batch, Progress, SegmentLike
from compression.structured import Removed, remove_groups

_EXACT = 2048  # columns up to which the elimination runs in float64


class BranchLike(Protocol):
    """A residual branch whose size is one decision."""

    @property
    def name(self) -> str: ...
    @property
    def units(self) -> Sequence[UnitLike]: ...


def augmented(layer: Layer) -> Tensor:
    """The layer's weight with its bias as a last column, (R, C) or (R, C + 1)."""
    whole = with_bias(layer)
    if len(whole) != 1:
        raise CompressionError("a grouped convolution cannot lose single groups of columns")
    return whole[0]


def solve_unit(
    name: str,
    layer: Layer,
    accumulator: HessianAccumulator,
    unit: UnitLike,
    keep: Sequence[int],
    rel_damp: float,
    score: Score,
    update: bool,
) -> tuple[list[Removed], float]:
    """:func:`remove_groups` for one consumer layer; also the loss of the last count."""
    assert accumulator.hessian is not None
    hessian = accumulator.hessian
    if hessian.shape[-1] <= _EXACT:
        hessian = hessian.double()
    damped, _ = damp(hessian, rel_damp)
    try:
        found = remove_groups(
            augmented(layer),
            damped[0],
            groups=unit.groups,
            width=unit.width,
            keep=keep,
            score=score,
            update=update,
            name=name,
            undamped=hessian[0],
        )
    except CompressionError as problem:
        raise CompressionError(
            f"layer {name!r}: {problem} (rel_damp {rel_damp:g}, {accumulator.samples} samples)"
        ) from None
    return found, found[-1].loss


def build_levels(
    model: nn.Module,
    segments: Sequence[SegmentLike],
    calibration: Callable[[], Iterable[Batch]],
    branches: Sequence[BranchLike],
    sizes: Mapping[str, Sequence[Size]],
    folder: Path,
    *,
    score: str = "obs",
    update: bool = True,
    rel_damp: float = 0.01,
    rows_per_column: float | None = None,
    progress: Progress | None = None,
    keeper: Keeper | None = None,
) -> Database:
    """Solve every branch at every size against the inputs it has now; ``model`` is not changed.

    Args:
        sizes: by branch, falling from the branch as it is.
        folder: where the database's files lie; the same one where an earlier attempt is resumed.
        score, update: which groups leave, one of :data:`compression.scores.METHODS`, and whether
            the rest of the layer takes up their work.
        keeper: where it is kept which segments are finished; None keeps nothing.

    Raises:
        CompressionError: a consumer lies in no segment, or a Hessian is not positive definite.
    """
    database = Database(folder)
    units = {
        unit.consumer: (branch, i) for branch in branches for i, unit in enumerate(branch.units)
    }
    for branch in branches:
        database.sizes[branch.name] = [tuple(size) for size in sizes[branch.name]]
        database.losses[branch.name] = [0.0] * len(sizes[branch.name])
    begin = database.resume(keeper)

    def visit(name: str, layer: Layer, accumulator: HessianAccumulator) -> None:
        branch, i = units[name]
        counts = [size[i] for size in database.sizes[branch.name]]
        # down to nothing, which tells how much there is to lose
        found, everything = solve_unit(
            name, layer, accumulator, branch.units[i], [*counts, 0], rel_damp, scoring, update
        )
        worst = 0.0
        for at, (count, level) in enumerate(zip(counts, found, strict=False)):
            # without an update, losing more may by chance cost less; a smaller size never does
            worst = max(worst, level.loss)
            database.losses[branch.name][at] += worst / max(everything, 1e-30)
            weight = augmented(layer) if count == branch.units[i].groups else level.weight
            database.put(name, count, weight)

    if not set(units) <= set(database.shapes):
        every = [branch.units[i] for branch, i in units.values()]
        scoring = METHODS.load(score)(model, segments, calibration, every)
        database.fill(
            model,
            segments,
            calibration,
            list(units),
            visit,
            begin=begin,
            rows_per_column=rows_per_column,
            progress=progress,
            keeper=keeper,
        )
    return database
