"""One layer's problem as every solver gets it: the weight, its inputs' Hessian, the damping."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from compression.hessian import Factor, HessianAccumulator, damp, factorise, layer_loss
from compression.layers import Layer, matrix_of


@dataclass(frozen=True)
class LayerProblem:
    """min 1/2 tr((W' - W) H (W' - W)^T) over W' with some entries zero, or on a grid, or both.

    Attributes:
        name: of the layer, for messages.
        weight: (G, R, C): groups, output rows a group, input columns.
        bias: (G, R), or None. With one, the Hessian's last column is the constant input 1.
        hessian: (G, D, D), 2/N sum x x^T, not damped; D = C, or C + 1 with a bias.
        samples: inputs that the Hessian has seen.
        rel_damp: damping, as a share of the mean diagonal.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    hessian: Tensor
    samples: int
    rel_damp: float

    @classmethod
    def of(
        cls, name: str, layer: Layer, accumulator: HessianAccumulator, rel_damp: float
    ) -> LayerProblem:
        """The problem of a layer as it is now."""
        assert accumulator.hessian is not None
        weight = matrix_of(layer)
        bias = None
        if layer.bias is not None:
            bias = layer.bias.detach().reshape(weight.shape[:2])
        return cls(name, weight, bias, accumulator.hessian, accumulator.samples, rel_damp)

    @cached_property
    def factor(self) -> Factor:
        """The damped Hessian and its inverse's factor.

        Raises:
            CholeskyError: it is not positive definite under this damping.
        """
        return factorise(
            self.hessian, rel_damp=self.rel_damp, layer=self.name, samples=self.samples
        )

    @cached_property
    def original(self) -> Tensor:
        """(G, R, D): what losses are measured against; weights of dead inputs count as zero."""
        whole = self.weight.to(self.hessian.dtype)
        if self.bias is not None:
            whole = torch.cat([whole, self.bias.to(whole.dtype)[..., None]], dim=-1)
        dead = self.hessian.diagonal(dim1=-2, dim2=-1) == 0
        return whole.masked_fill(dead[:, None], 0.0)

    def loss(self, solved: Solved) -> float:
        """1/2 tr(dW H dW^T) with the damped H, of an answer."""
        whole = solved.weight.to(self.hessian.dtype)
        if self.bias is not None:
            bias = self.bias if solved.bias is None else solved.bias
            whole = torch.cat([whole, bias.to(whole.dtype)[..., None]], dim=-1)
        damped, dead = damp(self.hessian, self.rel_damp)
        # damping gives dead inputs a curvature of 1; what stands there multiplies nothing but zeros
        return float(layer_loss(whole.masked_fill(dead[:, None], 0.0) - self.original, damped))


@dataclass(frozen=True)
class Solved:
    """What a solver answers: weight (G, R, C), bias (G, R) or None, kept (G, R, C) bool."""

    weight: Tensor
    bias: Tensor | None
    kept: Tensor
