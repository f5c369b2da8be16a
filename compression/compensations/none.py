"""Nothing is made good. No paper: the case to compare with.

A layer that carries factors already (the rung below was compensated) keeps a product of zero.
"""

from __future__ import annotations

from torch import Tensor

from compression.compensate import Factors
from compression.problem import LayerProblem


def compensate(problem: LayerProblem, error: Tensor, rank: int) -> Factors:
    """Factors of rank 0."""
    groups, rows, columns = error.shape
    return Factors(error.new_zeros(groups, rows, 0), error.new_zeros(groups, 0, columns))
