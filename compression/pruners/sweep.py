"""The column sweep with error feedback, then a least-squares polish of what stays.

SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774, algorithm 1). Ours differs: the layer's OBS
scores set the zeros that each block of columns owes (see `compression.masks.Unstructured`), the
bias takes part as a last column, and the kept weights are refined together afterwards, which the
one pass from left to right cannot do (`compression.refine`). A step of that costs about as much as
the sweep in a wide layer and the first ones bring most, so layers beyond any of the usual encoders'
take fewer.
"""

from __future__ import annotations

import torch

from compression.masks import MaskRule
from compression.problem import LayerProblem, Solved
from compression.refine import refine
from compression.sweep import sweep

_STEPS = 10  # of refinement
_MOST = 10 * 2**35  # multiplications of all of them, but for two


def prune(problem: LayerProblem, rule: MaskRule) -> Solved:
    """Solve a layer; raises CholeskyError where its Hessian cannot be factorised."""
    swept = sweep(problem.weight, problem.factor, rule, bias=problem.bias)
    start, free = swept.weight, swept.kept
    if swept.bias is not None:
        start = torch.cat([start, swept.bias[..., None]], dim=-1)
        free = torch.cat([free, torch.ones_like(free[..., :1])], dim=-1)
    damped = problem.factor.damped
    steps = min(_STEPS, max(2, _MOST // (start.numel() * damped.shape[-1])))
    solved = refine(start, problem.original, damped, free, iterations=steps)
    columns = problem.weight.shape[-1]
    bias = solved[..., columns] if swept.bias is not None else None
    return Solved(solved[..., :columns], bias, swept.kept)
