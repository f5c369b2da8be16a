"""Exact Optimal Brain Surgeon, for small layers: what the fast solvers are held against.

Frantar and Alistarh 2022, "Optimal Brain Compression" (arXiv 2208.11580), algorithms 1 and 2;
with a pattern, rows lose the cheapest weight of a group that still has one to lose (its section
4). Ours differs: the bias takes part as a column that stays, and the kept weights are solved once
more, from scratch, for the mask that was found, which takes the rounding of a few hundred
downdates out. It computes in float64. A layer of R rows and C columns takes R C^3 steps, so large
ones are refused.
"""

from __future__ import annotations

import torch

from compression.errors import CompressionError
from compression.masks import MaskRule, NofM, Unstructured, lowest
from compression.obs import masked_least_squares, removals
from compression.problem import LayerProblem, Solved

_MOST = 100_000_000_000  # multiplications: about two minutes on one core


def prune(problem: LayerProblem, rule: MaskRule) -> Solved:
    """Solve a layer exactly.

    Raises:
        CompressionError: the layer is too large, or fewer zeros are asked than it has.
        CholeskyError: its Hessian cannot be factorised.
    """
    groups, rows, columns = problem.weight.shape
    D = problem.hessian.shape[-1]
    if groups * rows * columns * D**2 > _MOST:
        raise CompressionError(
            f"layer {problem.name!r}: {groups * rows} x {columns} is too large for exact OBS; "
            "keep it dense (prune.keep_dense) or set prune.method to sweep"
        )
    if not isinstance(rule, NofM | Unstructured):
        raise CompressionError(
            f"layer {problem.name!r}: exact OBS chooses its mask; it takes none that is given"
        )
    damped = problem.factor.damped.double()
    start = problem.original.double()
    held = torch.zeros_like(problem.weight, dtype=torch.bool) if rule.held is None else rule.held
    pattern = (rule.n, rule.m) if isinstance(rule, NofM) else None
    rule.prepare(problem.weight, start[..., :columns])
    found = [
        removals(w, h, held=zero, pattern=pattern)
        for w, h, zero in zip(start, damped, held, strict=True)
    ]
    if isinstance(rule, Unstructured):
        kept = ~lowest(torch.stack([costs for costs, _ in found]), rule.zeros)
    else:
        kept = ~torch.stack([gone for _, gone in found])
    free = kept
    if problem.bias is not None:
        free = torch.cat([kept, torch.ones_like(kept[..., :1])], dim=-1)
    solved = torch.stack(
        [masked_least_squares(w, h, k) for w, h, k in zip(start, damped, free, strict=True)]
    ).to(problem.hessian.dtype)
    bias = None if problem.bias is None else solved[..., columns]
    return Solved(solved[..., :columns], bias, kept)
