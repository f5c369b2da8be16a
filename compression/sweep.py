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
) -> Swept:
    """Prune by ``rule`` and round to ``grid`` while compensating the columns still free.

    Args:
        weight: (G, R, C).
        factor: of the (G, D, D) Hessian, D = C, or C + 1 with a bias as the last column.
        rule: which weights stay.
        grid: values the kept weights may take; None keeps them real. A grid with a scale a block
            of columns is fitted here, as the sweep arrives at them.
        bias: (G, R), the last column: never masked, never rounded, takes up the mean shift.
        block_columns: columns between two updates of everything to their right, and between two
            looks of the mask rule; 32 lost up to 15 % less than 128 on DeiT-S and ResNet-50 layers.
    """
    upper = factor.upper
    work = weight.to(upper.dtype).clone()  # W (G, R, C)
    if bias is not None:
        work = torch.cat([work, bias.to(upper.dtype)[..., None]], dim=-1)
    columns = weight.shape[-1]
    # dead inputs never carry a signal: their weights are zero at no loss
    work[..., :columns].masked_fill_(factor.dead[:, None, :columns], 0.0)

    # [H^-1]_cc of the whole layer for the first look; U_cc^2 once c is the leftmost free column
    whole = upper.square().sum(dim=-2)[:, None, :columns]
    rule.prepare(work[..., :columns], work[..., :columns].square() / whole)
    kept = torch.ones_like(work[..., :columns], dtype=torch.bool)
    pivots = upper.diagonal(dim1=-2, dim2=-1)  # (G, D)
    squared = torch.zeros((), dtype=torch.float64, device=work.device)
    unit = math.lcm(rule.multiple, 1 if grid is None else grid.multiple)
    step = max(unit, block_columns // unit * unit)

    for start in range(0, columns, step):
        stop = min(start + step, columns)
        block = work[..., start:stop].clone()  # (G, R, B)
        pivot = pivots[:, None, start:stop]
        kept[..., start:stop] = rule.keep(start, stop, block.square() / pivot.square())
        keep = kept[..., start:stop]
        if grid is not None:
            grid.fit(start, block * keep, pivot.square().reciprocal())
        errors = torch.zeros_like(block)
        inner = upper[:, start:stop, start:stop]
        for c in range(stop - start):
            w = block[..., c]
            q = w if grid is None else grid.column(w, start + c)
            q = torch.where(keep[..., c], q, torch.zeros_like(q))
            error = (w - q) / pivot[..., c]
            block[..., c] = q
            if c + 1 < stop - start:
                block[..., c + 1 :] -= error[..., None] * inner[:, None, c, c + 1 :]
            errors[..., c] = error
        work[..., start:stop] = block
        work[..., stop:] -= errors @ upper[:, start:stop, stop:]
        squared += errors.double().square().sum()

    return Swept(
        weight=work[..., :columns],
        bias=work[..., columns] if bias is not None else None,
        kept=kept,
        loss=0.5 * float(squared),
    )
