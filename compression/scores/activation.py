"""How strongly a group speaks: the size of its activations over the calibration examples.

Minitron (Muralidharan et al. 2024, arXiv 2407.14679, section 2.2): the norm of a head's output and
the activation of a neuron, aggregated over samples and positions; no gradient, one pass. With
H = (2/N) sum x x^T, the mean over samples and positions of ||x_g||^2 is 1/2 sum_{c in g} H_cc, so
the layer's Hessian already holds it. Ours differs: L2 over both samples and positions (they
compare mean, L2 and variance for each), and the inputs are those that the already shrunk prefix
gives.
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
    """The mean squared activation of a group, from the diagonal of the layer's Hessian."""
    return score


def score(standing: Standing) -> Tensor:
    """1/2 sum_{c in g} H_cc of every group, (groups,)."""
    return 0.5 * per_group(standing.hessian.diagonal(), standing.groups, standing.width)
