"""AdaQuant: weights and scales moved by gradients until the rounded layer answers as it did.

Hubara et al. 2020, "Improving Post Training Neural Quantization: Layer-wise Calibration and
Integer Programming" (arXiv 2006.10518), equation 2:

    min over V, scale, bias  ||W X - Q_scale(W + V) X||^2

V is continuous and unbounded, so a weight may move by more than one step of the grid; gradients
pass rounding as if it were not there, and reach the scale as in LSQ (arXiv 1902.08153, equation
3). Ours differs: the objective is its quadratic form 1/2 tr(dW H dW^T) with the damped Hessian, so
no activations are needed and a step sees all of them; activations are not rounded in it; the bias
is solved in closed form at every step; zeros of a pruned weight are not part of it; steps are in
units of the grid; and each row keeps the best state it was in, of which the first is rounding to
nearest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compression.grids import BlockwiseGrid, Grid
from compression.problem import LayerProblem, Solved
from compression.rounders import rtn

_STEPS = 500
_LR = 0.01  # steps of the grid that a weight moves at most at a time, at first
_SCALE_LR = 1e-3  # relative change of a scale, likewise


@torch.no_grad()
def round_weights(problem: LayerProblem, kept: Tensor, grid: Grid | BlockwiseGrid) -> Solved:
    """Round a layer; raises CholeskyError where its Hessian is not positive definite.

    The scales of ``grid`` are moved in place.
    """
    damped = problem.factor.damped
    columns, live = kept.shape[-1], kept.to(damped.dtype)
    W = problem.original[..., :columns] * live  # (G, R, C)
    nearest = rtn.round_weights(problem, kept, grid).weight  # and the scales to begin with
    first = grid.scale.clone()
    unit = first if isinstance(grid, Grid) else grid.spread(columns)  # a step of the grid
    moved = torch.zeros_like(W)  # V, in steps
    stretched = torch.zeros_like(first)  # log of scale / first
    optimiser = torch.optim.Adam(
        [{"params": [moved], "lr": _LR}, {"params": [stretched], "lr": _SCALE_LR}]
    )
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, _STEPS)

    best = torch.full_like(W[..., :1], torch.inf)  # (G, R, 1), a row's least loss
    best_weight, best_scale = nearest, first.clone()
    for _ in range(_STEPS + 1):
        scale = first * stretched.exp()
        grid.scale.copy_(scale)
        wanted = (W + moved * unit) * live
        spread = grid.spread(columns)
        Q = grid.integers(wanted) * spread
        slope, loss = _slope(problem, Q, damped)
        better = loss < best
        best = torch.where(better, loss, best)
        best_weight = torch.where(better, Q, best_weight)
        best_scale = torch.where(better, scale, best_scale)
        inside = wanted.abs() <= grid.limit * spread
        moved.grad = slope * inside * live * unit
        # d Q / d scale: what rounding added inside, the outermost integer outside
        by_scale = slope * torch.where(inside, Q - wanted, Q)
        stretched.grad = _sums(by_scale, grid)
        optimiser.step()
        schedule.step()

    grid.scale.copy_(best_scale)
    bias = None
    if problem.bias is not None:
        change = best_weight - problem.original[..., :columns]
        bias = problem.original[..., columns] + _bias_change(change, damped)[..., 0]
    return Solved(best_weight, bias, kept)


def _bias_change(change: Tensor, damped: Tensor) -> Tensor:
    """The bias's best answer to a change of the weights (G, R, C): (G, R, 1)."""
    last = damped[:, :-1, -1:]  # what the inputs share with the constant one
    return -(change @ last) / damped[:, None, -1:, -1]


def _slope(problem: LayerProblem, rounded: Tensor, damped: Tensor) -> tuple[Tensor, Tensor]:
    """The loss's gradient by the weights (G, R, C), and each row's loss (G, R, 1)."""
    columns = rounded.shape[-1]
    change = rounded - problem.original[..., :columns]
    if problem.bias is not None:
        change = torch.cat([change, _bias_change(change, damped)], dim=-1)
    slope = change @ damped
    return slope[..., :columns], 0.5 * (slope * change).sum(dim=-1, keepdim=True)


def _sums(values: Tensor, grid: Grid | BlockwiseGrid) -> Tensor:
    """The sums of (G, R, C) over the weights that share a scale, in the scale's shape."""
    if isinstance(grid, Grid):
        return values.sum(dim=-1, keepdim=True)
    short = grid.scale.shape[-1] * grid.multiple - values.shape[-1]
    padded = torch.nn.functional.pad(values, (0, short))
    return padded.unflatten(-1, (-1, grid.multiple)).sum(dim=-1)
