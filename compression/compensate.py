"""Layers that compute W x + B (A x): their factors, solved for what pruning or rounding took of W.

Whoever builds such a layer gives it two submodules, `down` (A) and `up` (B), each with a weight
and no bias; everything else here sees a plain layer with a weight. They count as parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compression.compensations import METHODS
from compression.hessian import damp
from compression.layers import Layer, as_layer
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
    target, error = _missing(problem, held, solved)
    store_factors(layer, METHODS.load(method)(problem, error, held.up.shape[-1]))
    stored = factors_of(layer)
    assert stored is not None
    return _refitted(problem, target, error, solved, stored)


def compensated_on_grids(
    name: str,
    layer: Layer,
    problem: LayerProblem,
    rounded: Solved,
    method: str,
    on_grid: Callable[[str, Layer, LayerProblem], Tensor],
) -> tuple[Solved, float]:
    """As `compensated`, for what rounding took of W, with factors that are rounded themselves.

    A is rounded first, as a layer with W's inputs. B is then the best one for the A that is left,
    E H A^T (A H A^T)^-1, and is rounded as a layer whose inputs A puts out, of covariance A H A^T.
    With a bias, H is the covariance about the mean, as in :mod:`compression.compensations.eora`.

    Args:
        layer: has factors; they are replaced. problem: of its weight as it was.
        rounded: that weight on its grid.
        on_grid: rounds a factor, called with its name, layer and problem; gives (G, R, C).
    """
    held = factors_of(layer)
    assert held is not None
    target, error = _missing(problem, held, rounded)
    down = METHODS.load(method)(problem, error, held.up.shape[-1]).down
    # damped first: of inputs that hardly vary nothing but rounding is left about their mean
    whole, _ = damp(problem.hessian, problem.rel_damp)
    seen = whole[..., : error.shape[-1], : error.shape[-1]]
    if problem.bias is not None:
        mean = whole[..., :-1, -1:]
        seen = seen - mean @ mean.mT / whole[..., -1:, -1:]

    def rounded_factor(part: str, weight: Tensor, hessian: Tensor) -> Tensor:
        own = f"{name}.{part}"
        of = LayerProblem(own, weight, None, hessian, problem.samples, problem.rel_damp)
        return on_grid(own, as_layer(own, layer.get_submodule(part)), of).to(hessian.dtype)

    down = rounded_factor("down", down, seen)
    inner = torch.linalg.pinv(down @ seen @ down.mT, hermitian=True)  # rows of A may be zero
    up = error @ seen @ down.mT @ inner
    factors = Factors(rounded_factor("up", up, down @ seen @ down.mT), down)
    store_factors(layer, factors)
    return _refitted(problem, target, error, rounded, factors)


def _missing(problem: LayerProblem, held: Factors, solved: Solved) -> tuple[LayerProblem, Tensor]:
    """The layer's problem with its factors' product in its weight; what ``solved`` lacks of it."""
    dtype, columns = problem.hessian.dtype, problem.weight.shape[-1]
    target = replace(problem, weight=problem.weight.to(dtype) + held.product.to(dtype))
    error = target.original[..., :columns] - solved.weight.to(dtype)
    dead = problem.hessian.diagonal(dim1=-2, dim2=-1)[:, None, :columns] == 0
    return target, error.masked_fill(dead, 0.0)  # nothing is lost where nothing comes in


def _refitted(
    problem: LayerProblem, target: LayerProblem, error: Tensor, solved: Solved, factors: Factors
) -> tuple[Solved, float]:
    """The bias solved for what weight and factors leave of the error; the loss of all three."""
    dtype = problem.hessian.dtype
    product = factors.product.to(dtype)
    if problem.bias is not None:
        damped, _ = damp(problem.hessian, problem.rel_damp)
        shift = ((error - product) @ damped[..., :-1, -1:])[..., 0] / damped[..., -1, -1, None]
        solved = replace(solved, bias=target.original[..., -1] + shift)
    return solved, target.loss(replace(solved, weight=solved.weight.to(dtype) + product))
