"""Small layers with correlated inputs, and what an answer to their problem costs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compression.hessian import HessianAccumulator, damp
from compression.problem import LayerProblem
from models.low_rank import LowRankLinear

ROWS, COLUMNS = 8, 6


def inputs(seed: int = 0, columns: int = COLUMNS) -> Tensor:
    """Correlated, with a mean that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    return torch.randn(400, columns, generator=generator, dtype=torch.float64) @ mixed + 0.7


def problem_of(layer: nn.Linear | nn.Conv2d, x: Tensor, rel_damp: float = 0.01) -> LayerProblem:
    seen = HessianAccumulator(layer)
    seen.add(x)
    return LayerProblem.of("layer", layer, seen, rel_damp)


def linear(bias: bool, rank: int) -> LowRankLinear:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return LowRankLinear(nn.Linear(COLUMNS, ROWS, bias=bias).double(), rank)


def loss_of(problem: LayerProblem, weight: Tensor, bias: Tensor | None) -> Tensor:
    """1/2 tr(dW H dW^T) with the damped H, written out."""
    damped, _ = damp(problem.hessian, problem.rel_damp)
    change = weight - problem.weight
    if problem.bias is not None:
        assert bias is not None
        change = torch.cat([change, (bias - problem.bias)[..., None]], dim=-1)
    return 0.5 * torch.trace(change[0] @ damped[0] @ change[0].mT)
