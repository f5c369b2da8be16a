"""Exact Optimal Brain Surgeon on small layers: the oracle the fast solvers are held against."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.errors import CompressionError
from compression.masks import lowest

_AT_ONCE = 1 << 24  # entries of the rows' inverses that are held at a time


@torch.no_grad()
def exact_obs(weight: Tensor, damped: Tensor, zeros: int) -> tuple[Tensor, Tensor, float]:
    """Greedy OBS with exact updates, rows sharing one budget (OBC, arXiv 2208.11580, alg. 1 and 2).

    The rows' removals (:func:`removals`) compete for the budget, and what stays is solved for.
    Cost R*C^3: for layers of a few hundred columns.

    Args:
        weight: (R, C). damped: (C, C), positive definite. zeros: of the whole layer.

    Returns:
        (weight (R, C), kept (R, C) bool, loss 1/2 tr(dW H dW^T)).
    """
    if not 0 <= zeros <= weight.numel():
        raise CompressionError(f"{zeros} zeros asked of {weight.numel()} weights")
    costs, _ = removals(weight, damped)
    kept = ~lowest(costs, zeros)
    solved = masked_least_squares(weight, damped, kept)
    change = solved - weight
    return solved, kept, float(0.5 * torch.einsum("rc,cd,rd->", change, damped, change))


@torch.no_grad()
def removals(
    weight: Tensor,
    damped: Tensor,
    *,
    held: Tensor | None = None,
    pattern: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """What it costs every row to lose its weights one after the other, the cheapest first.

    A row loses the weight of lowest w_p^2/[H^-1]_pp, the others take up its work, and H^-1 is
    downdated by one Gaussian elimination (OBC, arXiv 2208.11580, algorithm 1). A row's k-th
    removal needs those before it, so its cost counts as the highest until then: the lowest costs
    of all rows are then a valid choice, and that which a heap of rows would make (algorithm 2).

    Args:
        weight: (R, D). damped: (D, D), positive definite.
        held: (R, C), weights that are zero already: they go first, at cost -1. C may be below D;
            the columns beyond (the bias) stay.
        pattern: (n, m): a group of m consecutive columns loses m - n, columns left over none.

    Returns:
        costs (R, C), of weights that the pattern keeps infinite, and the removed (R, C) bool: all
        where there is no pattern.
    """
    if held is None:
        held = torch.zeros_like(weight, dtype=torch.bool)
    rows = max(1, _AT_ONCE // damped.numel())
    inverse = torch.linalg.inv(damped)
    parts = [
        _removals(w, inverse.expand(len(w), -1, -1).clone(), zero, pattern)
        for w, zero in zip(weight.split(rows), held.split(rows), strict=True)
    ]
    costs, gone = zip(*parts, strict=True)
    return torch.cat(costs), torch.cat(gone)


def _removals(
    weight: Tensor, inverse: Tensor, held: Tensor, pattern: tuple[int, int] | None
) -> tuple[Tensor, Tensor]:
    """The same for rows (R, D) that have an inverse each, (R, D, D), used up here."""
    W, V, row = weight.clone(), inverse, torch.arange(len(weight), device=weight.device)
    columns = held.shape[1]
    costs = torch.full_like(W[:, :columns], torch.inf)
    gone = torch.zeros_like(held)
    highest = W.new_full((len(W),), -1.0)
    room = None
    if pattern is not None:
        n, m = pattern
        group = torch.arange(columns, device=W.device) // m
        room = W.new_full((len(W), columns // m + 1), m - n, dtype=torch.long)
        room[:, columns // m] = 0  # columns left over
    for _ in range(columns):
        score = W[:, :columns].square() / V.diagonal(dim1=1, dim2=2)[:, :columns]
        if room is not None:
            score.masked_fill_(room[:, group] <= 0, torch.inf)
        score.masked_fill_(held, -1.0).masked_fill_(gone, torch.inf)
        cost, p = score.min(dim=1)
        able = torch.isfinite(cost)
        if not bool(able.any()):
            break
        pivot = V[row, p]  # (R, D)
        scaled = pivot / pivot[row, p][:, None] * able[:, None]
        W -= W[row, p][:, None] * scaled
        V.baddbmm_(scaled[:, :, None], pivot[:, None, :], alpha=-1)
        r, q = row[able], p[able]
        W[r, q] = 0.0
        V[r, q], V[r, :, q] = 0.0, 0.0
        V[r, q, q] = 1.0  # the row and column are gone; the diagonal only must not divide by 0
        gone[r, q] = True
        # a hair above the one before: taken by cost alone, it never goes without that one
        above = torch.nextafter(highest, torch.full_like(highest, torch.inf))
        highest[able] = torch.maximum(above, cost)[able]
        costs[r, q] = highest[able]
        if room is not None:
            room[r, q // pattern[1]] -= 1  # type: ignore[index]
    return costs, gone


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
