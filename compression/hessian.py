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
    damped = hessian.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(torch.where(dead, torch.ones_like(diagonal), shift))
    return damped, dead


def factorise(hessian: Tensor, *, rel_damp: float, layer: str, samples: int) -> Factor:
    """Upper triangular U with H_damped^-1 = U^T U, without forming the inverse.

    H = M M^T for an upper triangular M, hence U = M^-1: better conditioned than the usual
    inverse-then-Cholesky and half its multiplications (see :func:`inverse_factor`).

    Raises:
        CholeskyError: when H is not positive definite under this damping.
    """
    damped, dead = damp(hessian, rel_damp)
    upper, definite = inverse_factor(damped)
    if not definite:
        raise CholeskyError(layer, rel_damp, samples)
    return Factor(upper, dead, damped)


_LEAF = 128  # columns that LAPACK factorises at once
_STRIP = 512  # rows of a triangle that are multiplied at once


def inverse_factor(damped: Tensor) -> tuple[Tensor, bool]:
    """Upper triangular U = M^-1 of H = M M^T, (G, D, D), and whether H is positive definite.

    By halves, nearly all of it plain products, which run at the machine's speed where
    factorisations and triangular solves do not:

        U_22 = M_22^-1            of H_22
        M_12 = H_12 U_22^T
        U_11 = M_11^-1            of H_11 - M_12 M_12^T
        U_12 = -U_11 M_12 U_22

    The triangles are multiplied in strips that leave out their zeros: 2/3 D^3 flops in all.
    """
    work = damped.clone()  # its upper triangle is used up
    upper = torch.zeros_like(damped)
    failed = torch.zeros((), dtype=torch.bool, device=damped.device)

    def invert(begin: int, end: int) -> None:
        if end - begin <= _LEAF:
            part = slice(begin, end)
            own = damped if end - begin == damped.shape[-1] else _symmetric(work[:, part, part])
            lower, info = torch.linalg.cholesky_ex(own.flip(-2, -1))
            failed.logical_or_((info != 0).any())
            eye = torch.eye(end - begin, dtype=work.dtype, device=work.device)
            solved = torch.linalg.solve_triangular(lower.flip(-2, -1), eye, upper=True)
            upper[:, part, part] = solved
            return
        middle = begin + max(_LEAF, (end - begin) // 2 // _LEAF * _LEAF)
        one, two = slice(begin, middle), slice(middle, end)
        invert(middle, end)
        mixed = torch.empty_like(work[:, one, two])  # M_12, then M_12 U_22
        for a, b in _strips(end - middle):  # U_22's rows, zero left of the diagonal
            right = upper[:, middle + a : middle + b, middle + a : end]
            torch.bmm(work[:, one, middle + a : end], right.mT, out=mixed[..., a:b])
        for a, b in _strips(middle - begin):  # the upper triangle is all that is read
            rest = work[:, begin + a : begin + b, begin + a : middle]
            rest.baddbmm_(mixed[:, a:b], mixed[:, a:].mT, alpha=-1)
        invert(begin, middle)
        scaled = torch.empty_like(mixed)
        for a, b in _strips(end - middle):  # U_22's columns, zero below the diagonal
            right = upper[:, middle : middle + b, middle + a : middle + b]
            torch.bmm(mixed[..., :b], right, out=scaled[..., a:b])
        for a, b in _strips(middle - begin):
            left = upper[:, begin + a : begin + b, begin + a : middle]
            upper[:, begin + a : begin + b, two] = torch.bmm(left, scaled[:, a:]).neg_()

    invert(0, damped.shape[-1])
    return upper, not bool(failed) and bool(torch.isfinite(upper).all())


def _strips(size: int) -> list[tuple[int, int]]:
    return [(a, min(a + _STRIP, size)) for a in range(0, size, _STRIP)]


def _symmetric(part: Tensor) -> Tensor:
    """The symmetric matrices (G, D, D) whose upper triangles these are."""
    return part.triu() + part.triu(1).mT


def layer_loss(change: Tensor, damped: Tensor) -> Tensor:
    """1/2 tr(dW H dW^T) summed over groups, for dW (G, R, D) and H (G, D, D)."""
    return 0.5 * torch.einsum("grc,gcd,grd->", change, damped, change)
