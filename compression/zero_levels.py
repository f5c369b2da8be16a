"""The database of zeros: every layer solved at several sparsities around its even share.

What a level keeps is a multiple of one number of weights, an eighth of what the layer keeps when
all layers keep the same share: layers of equal size trade level against level and the total stays
(EvoPress, arXiv 2410.14649, section 3: levels of equal cost). Ours differs: the steps are wider
where much is kept, so that few levels reach from an eighth of the even share to six times as much.
They are solved against the inputs that the layers
have now, so that any of them can be combined; what is chosen is solved again one block after the
other, each on what those before it give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from compression.database import Database, with_bias
from compression.hessian import HessianAccumulator
from compression.keeping import Keeper
from compression.layers import Layer
from compression.masks import Unstructured
from compression.problem import LayerProblem, Solved
from compression.pruners import prune_several
from compression.sequential import Batch, Progress, SegmentLike

# what a level keeps, in eighths of the layer's even share
EIGHTHS = (48, 32, 24, 16, 12, 10, 8, 7, 6, 5, 4, 3, 2, 1)


@dataclass(frozen=True)
class LayerItem:
    """A layer whose number of zeros is one decision."""

    name: str

    @property
    def consumer(self) -> str:
        """The layer itself."""
        return self.name

    @property
    def units(self) -> tuple[LayerItem]:
        """The layer itself."""
        return (self,)


def counts_around(size: int, held: int, even: int) -> list[int]:
    """Zeros a level of one layer, rising: as it is, then around its even share.

    Args:
        size: weights. held: zeros that it has already. even: zeros of its even share.
    """
    kept = size - even
    counts = {size - round(kept * eighths / 8) for eighths in EIGHTHS}
    return [held, *sorted(count for count in counts if held < count)]


def build_zero_levels(
    model: nn.Module,
    segments: Sequence[SegmentLike],
    calibration: Callable[[], Iterable[Batch]],
    zeros: Mapping[str, Sequence[int]],
    folder: Path,
    *,
    method: str = "sweep",
    rel_damp: float = 0.01,
    rows_per_column: float | None = None,
    progress: Progress | None = None,
    keeper: Keeper | None = None,
) -> Database:
    """Solve every layer at every count against the inputs it has now; ``model`` is not changed.

    Args:
        zeros: by layer, rising from the zeros that it holds.
        folder: where the database's files lie; the same one where an earlier attempt is resumed.
        method: one of :data:`compression.pruners.METHODS`.
        keeper: where it is kept which segments are finished; None keeps nothing.

    Raises:
        CompressionError: a layer lies in no segment, or a Hessian is not positive definite.
    """
    database = Database(folder)
    for name, counts in zeros.items():
        database.sizes[name] = [(count,) for count in counts]
        database.losses[name] = [0.0] * len(counts)
    begin = database.resume(keeper)

    def visit(name: str, layer: Layer, accumulator: HessianAccumulator) -> None:
        problem = LayerProblem.of(name, layer, accumulator, rel_damp)
        held = problem.weight == 0
        nothing = torch.zeros_like(problem.weight)
        everything = max(problem.loss(Solved(nothing, problem.bias, nothing.bool())), 1e-30)
        worst = 0.0
        (first,), *counts = database.sizes[name]
        database.put(name, first, with_bias(layer))
        rules = [Unstructured(count, held) for (count,) in counts]
        answers = prune_several(method, problem, rules)
        for at, ((count,), solved) in enumerate(zip(counts, answers, strict=True), start=1):
            # more zeros cost more, but for what solvers leave to chance
            worst = max(worst, problem.loss(solved))
            database.losses[name][at] = worst / everything
            whole = solved.weight
            bias = problem.bias if solved.bias is None else solved.bias
            if bias is not None:
                whole = torch.cat([whole, bias.to(whole.dtype)[..., None]], dim=-1)
            database.put(name, count, whole)

    if not set(zeros) <= set(database.shapes):
        database.fill(
            model,
            segments,
            calibration,
            list(zeros),
            visit,
            begin=begin,
            rows_per_column=rows_per_column,
            progress=progress,
            keeper=keeper,
        )
    return database
