"""The layer Hessian H = (2/N) sum x x^T, streamed, and its factor for the column sweep."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compression.errors import CholeskyError
from compression.layers import Layer, columns_of


class HessianAccumulator:
    """Streams a layer's inputs into H without keeping them.

    H has shape (G, D, D) with D = C, or C + 1 where the layer has a bias: the bias is a last
    column whose input is always 1, so that the sweep compensates the mean shift it causes
    elsewhere. ``samples`` counts columns (samples times positions).
    """

    def __init__(self, layer: Layer, *, max_rows: int | None = None) -> None:
        self.layer = layer
        self.samples = 0
        self.hessian: Tensor | None = None
        self._max_rows = max_rows

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Add one batch of the layer's inputs; see :func:`columns_of` for its shape."""
        columns = columns_of(self.layer, x, self._thinned)
        dtype = torch.float64 if columns.dtype == torch.float64 else torch.float32
        columns = columns.to(dtype)
        if self.layer.bias is not None:
            columns = torch.cat([columns, torch.ones_like(columns[..., :1])], dim=-1)
        n, m = self.samples, columns.shape[1]
        if self.hessian is None:
            size = columns.shape[-1]
            self.hessian = columns.new_zeros(columns.shape[0], size, size)
        # running mean: H <- n/(n+m) H + 2/(n+m) X^T X
        self.hessian.baddbmm_(columns.mT, columns, beta=n / (n + m), alpha=2 / (n + m))
        self.samples = n + m

    def _thinned(self, rows: int) -> Tensor | None:
        """One row at a random place in each of ``max_rows`` equal stretches; None for all.

        Neighbouring positions of an image say nearly the same, so a part of them is enough; a
        fixed stride would fall into step with the image's width and see one edge of it only.
        """
        wanted = self._max_rows
        if wanted is None or rows <= wanted:
            return None
        generator = torch.Generator().manual_seed(self.samples)
        places = torch.arange(wanted) + torch.rand(wanted, generator=generator)
        return (places * (rows / wanted)).long().clamp_(max=rows - 1)


@dataclass(frozen=True)
class Factor:
    """``upper`` (G, D, D) with H_damped^-1 = upper^T upper; ``dead`` (G, D) marks unused inputs."""

    upper: Tensor
    dead: Tensor
    damped: Tensor


def damp(hessian: Tensor, rel_damp: float) -> tuple[Tensor, Tensor]:
    """H + rel_damp * mean(diag H) I, dead inputs given H_ii = 1. Returns (damped, dead)."""
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    dead = diagonal == 0
    shift = rel_damp * diagonal.mean(dim=-1, keepdim=True)  # (G, 1)
    return hessian + torch.diag_embed(torch.where(dead, torch.ones_like(diagonal), shift)), dead


def factorise(hessian: Tensor, *, rel_damp: float, layer: str, samples: int) -> Factor:
    """Upper triangular U with H_damped^-1 = U^T U, from one Cholesky of the reversed Hessian.

    With J the reversal, J H J = L L^T gives H = M M^T for the upper triangular M = J L J, hence
    U = M^-1: one factorisation and one triangular inverse, instead of the three factorisations
    of the usual inverse-then-Cholesky, and better conditioned.

    Raises:
        CholeskyError: when H is not positive definite under this damping.
    """
    damped, dead = damp(hessian, rel_damp)
    lower, info = torch.linalg.cholesky_ex(damped.flip(-2, -1))
    if bool(info.any()) or not bool(torch.isfinite(lower).all()):
        raise CholeskyError(layer, rel_damp, samples)
    eye = torch.eye(damped.shape[-1], dtype=damped.dtype, device=damped.device)
    upper = torch.linalg.solve_triangular(lower.flip(-2, -1), eye, upper=True)
    return Factor(upper, dead, damped)


def layer_loss(change: Tensor, damped: Tensor) -> Tensor:
    """1/2 tr(dW H dW^T) summed over groups, for dW (G, R, D) and H (G, D, D)."""
    return 0.5 * torch.einsum("grc,gcd,grd->", change, damped, change)
