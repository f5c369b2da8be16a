"""Wanda: weights go by their size times that of what they multiply, row against row equal.

Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models" (arXiv
2306.11695), equation 1: score |W_ij| * ||X_j||_2, compared within an output row; what stays is not
changed. ||X_j||_2 is sqrt(N/2 H_jj), so no activations are needed; N is the same for all inputs
and is left out. Ours differs: the layer's count is exact. Where it does not divide by the rows,
the rest goes to the rows whose next weight scores lowest, and a row that has lost more before
(a ladder's earlier rung, another method) keeps its zeros while the others share what is left.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compression.masks import MaskRule, Unstructured
from compression.problem import LayerProblem, Solved


def prune(problem: LayerProblem, rule: MaskRule) -> Solved:
    """Mask a layer; raises CompressionError where fewer zeros are asked than it has."""
    weight = problem.weight
    norms = problem.hessian.diagonal(dim1=-2, dim2=-1)[:, None, : weight.shape[-1]].sqrt()
    score = weight.abs().to(norms.dtype) * norms
    rule.prepare(weight, score)
    if isinstance(rule, Unstructured):
        kept = ~_lowest_of_rows(score, rule)
    else:
        kept = rule.keep(0, score.shape[-1], score)
    return Solved(weight.masked_fill(~kept, 0.0), problem.bias, kept)


def _lowest_of_rows(score: Tensor, rule: Unstructured) -> Tensor:
    """True at the rule's number of weights, equally many a row: the lowest of each."""
    if rule.held is not None:
        score = score.masked_fill(rule.held, -1.0)
    rows = score.flatten(0, 1)  # (G R, C)
    held = (rows < 0).sum(dim=1)
    ordered, order = torch.sort(rows, dim=1, stable=True)
    count = _share(held, ordered, rule.zeros)
    first = torch.arange(rows.shape[1], device=rows.device) < count[:, None]
    return torch.zeros_like(first).scatter_(1, order, first).reshape(score.shape)


def _share(held: Tensor, ordered: Tensor, zeros: int) -> Tensor:
    """Zeros a row: as equal as what is held allows, ``zeros`` in all.

    ``held`` (rows,) at least that many; ``ordered`` (rows, C), each row's scores, rising.
    """
    low, high = 0, ordered.shape[1]  # the largest equal share that is not too much
    while low < high:
        middle = (low + high + 1) // 2
        if int(held.clamp(min=middle).sum()) <= zeros:
            low = middle
        else:
            high = middle - 1
    count = held.clamp(min=low)
    left = zeros - int(count.sum())
    if left:
        following = ordered[:, low].masked_fill(held > low, torch.inf)
        count[torch.sort(following, stable=True).indices[:left]] += 1
    return count
