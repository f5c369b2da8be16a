"""Quantization grids: the values a weight may take, and how their scale is chosen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """A symmetric uniform grid a row: value = scale * integer, zero point 0, so zero is exact.

    ``scale`` is (G, R, 1); integers run from -limit to limit (127 for 8 bits: -128 is left out,
    so that negating a weight never leaves the grid).
    """

    scale: Tensor
    limit: int

    def integers(self, weight: Tensor) -> Tensor:
        """Nearest integers (ties to even, as the runtime rounds), same shape as ``weight``."""
        return torch.clamp(torch.round(weight / self.scale), -self.limit, self.limit)

    def nearest(self, weight: Tensor) -> Tensor:
        """Nearest values on the grid."""
        return self.integers(weight) * self.scale

    def column(self, values: Tensor) -> Tensor:
        """Nearest values of one column (G, R)."""
        scale = self.scale.squeeze(-1)
        return torch.clamp(torch.round(values / scale), -self.limit, self.limit) * scale


def row_grid(weight: Tensor, *, bits: int = 8, candidates: int = 20, shrink: float = 0.6) -> Grid:
    """The grid a row whose clipping minimises that row's squared rounding error.

    ``weight`` is (G, R, C). Of ``candidates`` clipping points between ``shrink`` and 1 times the
    row's largest magnitude the best is kept. Rows of zeros get scale 1.
    """
    limit = 2 ** (bits - 1) - 1
    top = weight.abs().amax(dim=-1, keepdim=True)  # (G, R, 1)
    top = torch.where(top > 0, top, torch.full_like(top, limit))
    best_error = torch.full_like(top, torch.inf)
    best = top
    for fraction in torch.linspace(1.0, shrink, candidates).tolist():
        scale = top * fraction / limit
        rounded = torch.clamp(torch.round(weight / scale), -limit, limit) * scale
        error = (weight - rounded).square().sum(dim=-1, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best = torch.where(better, top * fraction, best)
    return Grid(best / limit, limit)


def block_grid(table: Tensor, *, bits: int, block: int) -> tuple[Tensor, Tensor]:
    """Round-to-nearest of an embedding table (V, D) with one scale a block of a row.

    Returns integers (V, D) in [-2^(bits-1)+1, 2^(bits-1)-1] as int8 and scales (V, D/block).
    Looking a row up needs no Hessian: every row is an input of its own.

    Raises:
        ValueError: when D is not a multiple of ``block``.
    """
    rows, width = table.shape
    if width % block:
        raise ValueError(f"embedding width {width} is not a multiple of block {block}")
    grid = row_grid(table.reshape(rows, width // block, block).float(), bits=bits)
    integers = grid.integers(table.reshape(rows, width // block, block).float())
    return integers.reshape(rows, width).to(torch.int8), grid.scale.squeeze(-1)
