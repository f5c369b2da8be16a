"""How large a group's weights are, whatever its inputs.

||W_:g||_F^2 over the columns by which the next layer reads the group: the norm of filters of Li et
al. 2017 (arXiv 1608.08710, section 3.1). Ours differs: they take the L1 norm of the rows that make
a channel, we the L2 norm of the columns that read it, which are what is removed from the layer
that is solved; and the weights are those before anything left, so the order is fixed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from compression.groups import Score, Standing, UnitLike, per_group

if TYPE_CHECKING:
    from compression.sequential import Batch, SegmentLike


def scorer(
    model: nn.Module,
    segments: Sequence[SegmentLike],
    calibration: Callable[[], Iterable[Batch]],
    units: Sequence[UnitLike],
) -> Score:
    """The squared norm of a group's columns, from the weights alone."""
    return score


def score(standing: Standing) -> Tensor:
    """||W_:g||_F^2 of every group, (groups,)."""
    squares = standing.original.square().sum(dim=0)
    return per_group(squares, standing.groups, standing.width)
