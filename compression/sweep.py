"""The column sweep, written once: pruning, rounding and both are its arguments.

SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774, algorithm 1) and GPTQ (arXiv 2210.17323,
algorithm 1) share one recursion. With H^-1 = U^T U and columns taken left to right,

    e_c  = (w_c - q_c) / U_cc            q_c: the column's final value (zero, rounded or kept)
    w_j -= e_c U_cj   for all j > c      optimal update of the columns still free

Since the whole change is dW = -E U and U H U^T = I, the loss 1/2 tr(dW H dW^T) is 1/2 ||E||^2,
which is what is reported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compression.grids import SweepGrid
from compression.hessian import Factor
from compression.masks import MaskRule


@dataclass(frozen=True)
class Swept:
    """weight (G, R, C), bias (G, R) or None, kept (G, R, C) bool, loss 1/2 tr(dW H dW^T)."""

    weight: Tensor
    bias: Tensor | None
    kept: Tensor
    loss: float


@torch.no_grad()
def sweep(
    weight: Tensor,
    factor: Factor,
    rule: MaskRule,
    *,
    grid: SweepGrid | None = None,
    bias: Tensor | None = None,
    block_columns: int = 32,
    panel_columns: int = 256,
) -> Swept:
    """Prune by ``rule`` and round to ``grid`` while compensating the columns still free.

    The same recursion, ordered for the machine: the weight is held transposed, so that a column
    is contiguous; a column takes what the block owes it in one product (left-looking), a block
    what the panel owes it, and everything to the right of a panel is updated once, by a product
    that is wide enough to run at the machine's speed.

    Args:
        weight: (G, R, C).
        factor: of the (G, D, D) Hessian, D = C, or C + 1 with a bias as the last column.
        rule: which weights stay.
        grid: values the kept weights may take; None keeps them real. A grid with a scale a block
            of columns is fitted here, as the sweep arrives at them.
        bias: (G, R), the last column: never masked, never rounded, takes up the mean shift.
        block_columns: columns between two looks of the mask rule; the fewer, the less is lost.
        panel_columns: columns between two updates of everything to their right; changes the time
            alone.
    """
    upper = factor.upper
    columns = weight.shape[-1]
    # dead inputs never carry a signal: their weights are zero at no loss
    alive = weight.to(upper.dtype).masked_fill(factor.dead[:, None, :columns], 0.0)
    # [H^-1]_cc of the whole layer for the first look; U_cc^2 once c is the leftmost free column
    whole = upper.square().sum(dim=-2)[:, None, :columns]
    rule.prepare(alive, alive.square() / whole)

    work = alive.new_empty(len(weight), upper.shape[-1], weight.shape[1])  # W^T (G, D, R)
    work[:, :columns] = alive.mT
    if bias is not None:
        work[:, columns] = bias
    del alive
    kept = torch.ones(weight.shape, dtype=torch.bool, device=work.device)
    pivots = upper.diagonal(dim1=-2, dim2=-1)  # (G, D)
    squared = torch.zeros((), dtype=torch.float64, device=work.device)
    unit = math.lcm(rule.multiple, 1 if grid is None else grid.multiple)
    step = max(unit, block_columns // unit * unit)
    panel = max(step, panel_columns // step * step)

    for first in range(0, columns, panel):
        last = min(first + panel, columns)
        errors = work.new_empty(len(work), last - first, work.shape[-1])  # E^T (G, P, R)
        for start in range(first, last, step):
            stop = min(start + step, last)
            block = work[:, start:stop]  # (G, B, R), a view: solved in place
            done = start - first
            if done:  # what this panel's earlier blocks owe it
                owed = upper[:, first:start, start:stop].mT
                block.baddbmm_(owed, errors[:, :done], alpha=-1)
            pivot = pivots[:, start:stop, None]
            score = (block.square() / pivot.square()).mT.contiguous()
            keep = rule.keep(start, stop, score)
            kept[..., start:stop] = keep
            keep = keep.mT.contiguous()  # (G, B, R)
            if grid is not None:
                grid.fit(start, (block * keep).mT, pivot.mT.square().reciprocal())
            inner = upper[:, start:stop, start:stop]
            own = errors[:, done : done + stop - start]
            if grid is None and work.device.type in _AT_ONCE:
                _solve_at_once(block, own, inner, keep)
            else:
                _solve(block, own, inner, keep, grid, start)
        work[:, last:].baddbmm_(upper[:, first:last, last:].mT, errors, alpha=-1)
        squared += torch.linalg.vector_norm(errors, dtype=torch.float64).square()

    return Swept(
        weight=work[:, :columns].mT.contiguous(),
        bias=work[:, columns] if bias is not None else None,
        kept=kept,
        loss=0.5 * float(squared),
    )


# where a launch a column costs more than the arithmetic that it saves
_AT_ONCE = {"cuda"}


def _solve_at_once(block: Tensor, errors: Tensor, inner: Tensor, keep: Tensor) -> None:
    """A block that is pruned and not rounded, as one triangular system a row.

    With the mask known, U_cc e_c + sum_{k < c} U_kc e_k = w_c at the removed columns of a row, and
    e_c = 0 at its kept ones. Shapes as in :func:`_solve`.
    """
    gone = (~keep).mT  # (G, R, B)
    removed = gone.to(block.dtype)
    lower = inner.mT  # U^T
    system = lower[:, None] * removed[..., None]  # (G, R, B, B)
    system.diagonal(dim1=-2, dim2=-1).add_(1 - removed)
    found = torch.linalg.solve_triangular(system, (block.mT * removed)[..., None], upper=False)
    errors.copy_(found[..., 0].mT)
    block.baddbmm_(lower.tril(-1), errors, alpha=-1)
    block.masked_fill_(~keep, 0.0)


def _solve(
    block: Tensor, errors: Tensor, inner: Tensor, keep: Tensor, grid: SweepGrid | None, start: int
) -> None:
    """One block, column by column, in place.

    ``block``, ``errors`` (filled here) and ``keep`` are (G, B, R), ``inner`` is U's (G, B, B);
    ``start`` is the block's first column.
    """
    pivot = inner.diagonal(dim1=-2, dim2=-1)[..., None]  # (G, B, 1)
    gone = ~keep
    share = gone / pivot  # what of a removed weight is error: all of it; nothing of a kept one
    owed = inner.mT.contiguous()  # U^T: a row a column of U
    for c in range(block.shape[1]):
        w = block[:, c : c + 1]  # (G, 1, R)
        if c:
            w.baddbmm_(owed[:, c : c + 1, :c], errors[:, :c], alpha=-1)
        if grid is None:
            torch.mul(w, share[:, c : c + 1], out=errors[:, c : c + 1])
            continue
        q = grid.column(w[:, 0], start + c)[:, None].masked_fill(gone[:, c : c + 1], 0.0)
        errors[:, c : c + 1] = (w - q) / pivot[:, c : c + 1]
        w.copy_(q)
    if grid is None:
        block.masked_fill_(gone, 0.0)
