"""The column sweep with error feedback, then a least-squares polish of what stays.

SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774, algorithm 1). Ours differs: the layer's OBS
scores set the zeros that each block of columns owes (see `compression.masks.Unstructured`), the
bias takes part as a last column, and the kept weights are refined together afterwards, which the
one pass from left to right cannot do (`compression.refine`). A step of that costs about as much as
the sweep in a wide layer and the first ones bring most, so layers beyond any of the usual encoders'
take fewer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from compression.masks import MaskRule, Several
from compression.problem import LayerProblem, Solved
from compression.refine import refine
from compression.sweep import sweep

_STEPS = 10  # of refinement
_MOST = 10 * 2**35  # multiplications of all of them, but for two
# weights that are swept side by side: a GPU waits for launches, a core for its cache
_BESIDE = {"cuda": 2**25, "cpu": 2**18}


def prune(problem: LayerProblem, rule: MaskRule) -> Solved:
    """Solve a layer; raises CholeskyError where its Hessian cannot be factorised."""
    swept = sweep(problem.weight, problem.factor, rule, bias=problem.bias)
    return _refined(problem, swept.weight, swept.bias, swept.kept)


def prune_several(problem: LayerProblem, rules: Sequence[MaskRule]) -> Iterator[Solved]:
    """The answers under each rule, swept side by side: rows of one Hessian do not meet."""
    weight, rows = problem.weight, problem.weight.shape[1]
    beside = max(1, _BESIDE.get(weight.device.type, 0) // weight.numel())
    for begin in range(0, len(rules), beside):
        some = rules[begin : begin + beside]
        bias = None if problem.bias is None else problem.bias.repeat(1, len(some))
        rule = some[0] if len(some) == 1 else Several(some)
        swept = sweep(weight.repeat(1, len(some), 1), problem.factor, rule, bias=bias)
        for at in range(len(some)):
            own = slice(at * rows, (at + 1) * rows)
            own_bias = None if swept.bias is None else swept.bias[:, own]
            yield _refined(problem, swept.weight[:, own], own_bias, swept.kept[:, own])


def _refined(problem: LayerProblem, weight: Tensor, bias: Tensor | None, kept: Tensor) -> Solved:
    """The kept weights, and the bias, solved on from where the sweep left them."""
    start, free = weight, kept
    if bias is not None:
        start = torch.cat([weight, bias[..., None]], dim=-1)
        free = torch.cat([kept, torch.ones_like(kept[..., :1])], dim=-1)
    damped = problem.factor.damped
    steps = min(_STEPS, max(2, _MOST // (start.numel() * damped.shape[-1])))
    solved = refine(start, problem.original, damped, free, iterations=steps)
    columns = weight.shape[-1]
    return Solved(solved[..., :columns], None if bias is None else solved[..., columns], kept)
