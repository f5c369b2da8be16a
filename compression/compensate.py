"""Layers that compute W x + B (A x): reading their factors, and solving them after W was pruned.

Whoever builds such a layer gives it two submodules, `down` (A) and `up` (B), each with a weight
and no bias; everything else here sees a plain layer with a weight. They count as parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compression.compensations import METHODS
from compression.hessian import damp
from compression.layers import Layer
from compression.problem import LayerProblem, Solved


@dataclass(frozen=True)
class Factors:
    """``up`` (G, R, r) and ``down`` (G, r, C), of any r up to the rank asked for."""

    up: Tensor
    down: Tensor

    @property
    def product(self) -> Tensor:
        """(G, R, C)."""
        return self.up @ self.down


def _parts(layer: Layer) -> tuple[nn.Parameter, nn.Parameter] | None:
    up, down = getattr(layer, "up", None), getattr(layer, "down", None)
    if up is None or down is None:
        return None
    return up.weight, down.weight


def factors_of(layer: Layer) -> Factors | None:
    """The factors that a layer carries; None where it carries none."""
    parts = _parts(layer)
    if parts is None:
        return None
    up, down = (part.detach().flatten(1) for part in parts)
    return Factors(up[None], down[None])


@torch.no_grad()
def store_factors(layer: Layer, factors: Factors) -> None:
    """Write factors into a layer that carries them; a rank that is not filled is zero.

    Raises:
        ValueError: the layer carries none.
    """
    parts = _parts(layer)
    if parts is None:
        raise ValueError(f"{type(layer).__name__} carries no factors")
    up, down = parts
    rank = factors.up.shape[-1]
    values = torch.zeros_like(up).flatten(1), torch.zeros_like(down).flatten(1)
    values[0][:, :rank] = factors.up[0]
    values[1][:rank] = factors.down[0]
    for part, value in zip(parts, values, strict=True):
        part.copy_(value.view_as(part))


def compensated(
    layer: Layer, problem: LayerProblem, solved: Solved, method: str
) -> tuple[Solved, float]:
    """Solve a layer's factors for what pruning took; a layer without factors is left alone.

    What the factors held before, from the rung below, counts as something the layer should
    compute. The bias is then the best one for what is left of the error E = W - W' - B A: with the
    damped Hessian's last column h and corner d, it moves by E h / d.

    Args:
        layer: its factors are replaced; its weight and bias are not written.
        problem: of the layer's weight as it was. solved: that weight, pruned.

    Returns:
        the pruned weight with its refitted bias, and 1/2 tr(dW H dW^T) of weight and factors
        together.
    """
    held = factors_of(layer)
    if held is None:
        return solved, problem.loss(solved)
    dtype, columns = problem.hessian.dtype, problem.weight.shape[-1]
    target = replace(problem, weight=problem.weight.to(dtype) + held.product.to(dtype))
    error = target.original[..., :columns] - solved.weight.to(dtype)
    store_factors(layer, METHODS.load(method)(problem, error, held.up.shape[-1]))
    stored = factors_of(layer)
    assert stored is not None
    product = stored.product.to(dtype)
    if problem.bias is not None:
        damped, _ = damp(problem.hessian, problem.rel_damp)
        shift = ((error - product) @ damped[..., :-1, -1:])[..., 0] / damped[..., -1, -1, None]
        solved = replace(solved, bias=target.original[..., -1] + shift)
    return solved, target.loss(replace(solved, weight=solved.weight.to(dtype) + product))
