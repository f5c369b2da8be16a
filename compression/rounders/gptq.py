"""GPTQ: the column sweep with rounding, the mask held.

Frantar et al. 2022, arXiv 2210.17323, algorithm 1. Ours differs: zeros of a pruned weight are a
fixed mask of the same sweep, and the bias takes up the mean shift as a last column.
"""

from __future__ import annotations

from torch import Tensor

from compression.grids import BlockwiseGrid, Grid
from compression.masks import Fixed
from compression.problem import LayerProblem, Solved
from compression.sweep import sweep


def round_weights(problem: LayerProblem, kept: Tensor, grid: Grid | BlockwiseGrid) -> Solved:
    """Round a layer; raises CholeskyError where its Hessian cannot be factorised."""
    found = sweep(problem.weight, problem.factor, Fixed(kept), grid=grid, bias=problem.bias)
    return Solved(found.weight, found.bias, found.kept)
