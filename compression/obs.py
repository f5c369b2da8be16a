"""Exact Optimal Brain Surgeon on small layers: the oracle the fast solvers are held against."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.errors import CompressionError


@torch.no_grad()
def exact_obs(weight: Tensor, damped: Tensor, zeros: int) -> tuple[Tensor, Tensor, float]:
    """Greedy OBS with exact updates, rows sharing one budget (OBC, arXiv 2208.11580, alg. 1 and 2).

    Each row is pruned one weight at a time, w_p^2/[H^-1]_pp lowest first, the inverse downdated
    by one Gaussian elimination a removal; the rows' traces then compete for the budget. Cost
    R*C^3: for layers of a few hundred columns.

    Args:
        weight: (R, C). damped: (C, C), positive definite. zeros: of the whole layer.

    Returns:
        (weight (R, C), kept (R, C) bool, loss 1/2 tr(dW H dW^T)).
    """
    rows, columns = weight.shape
    if not 0 <= zeros <= weight.numel():
        raise CompressionError(f"{zeros} zeros asked of {weight.numel()} weights")
    inverse = torch.linalg.inv(damped)
    costs = weight.new_empty(rows, columns)
    order = torch.empty(rows, columns, dtype=torch.long)
    for r in range(rows):
        w, hinv = weight[r].clone(), inverse.clone()
        alive = torch.ones(columns, dtype=torch.bool)
        for k in range(columns):
            score = w.square() / hinv.diagonal()
            p = int(torch.where(alive, score, torch.full_like(score, torch.inf)).argmin())
            costs[r, k], order[r, k] = score[p], p
            w -= hinv[:, p] * (w[p] / hinv[p, p])
            hinv -= torch.outer(hinv[:, p], hinv[p]) / hinv[p, p]
            alive[p] = False
            w[~alive] = 0.0
            hinv[p, p] = 1.0  # row and column p are zero now; the pivot only must not divide by 0
    # a row's k-th removal needs the k-1 before it: its running maximum keeps the order valid
    flat = costs.cummax(dim=1).values.reshape(-1)
    chosen = torch.zeros(rows * columns, dtype=torch.bool)
    chosen[torch.sort(flat, stable=True).indices[:zeros]] = True
    kept = torch.ones(rows, columns, dtype=torch.bool)
    kept.scatter_(1, order, ~chosen.reshape(rows, columns))
    solved = masked_least_squares(weight, damped, kept)
    change = solved - weight
    return solved, kept, float(0.5 * torch.einsum("rc,cd,rd->", change, damped, change))


@torch.no_grad()
def masked_least_squares(weight: Tensor, damped: Tensor, kept: Tensor) -> Tensor:
    """argmin over W' with the given zeros of tr((W'-W) H (W'-W)^T), row by row in closed form.

    For the kept set S of a row: w'_S = w_S + H_SS^-1 H_SP w_P, P being the removed ones.
    """
    solved = torch.zeros_like(weight)
    for r in range(weight.shape[0]):
        s, p = kept[r].nonzero().squeeze(1), (~kept[r]).nonzero().squeeze(1)
        if len(s) == 0:
            continue
        pull = damped[s][:, p] @ weight[r, p]
        solved[r, s] = weight[r, s] + torch.linalg.solve(damped[s][:, s], pull)
    return solved
