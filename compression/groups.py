"""Groups of input columns, and what a score of them is told and answers: `compression.scores`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class UnitLike(Protocol):
    """Equal groups that one layer reads: ``groups`` times ``width`` consecutive columns."""

    @property
    def name(self) -> str: ...
    @property
    def consumer(self) -> str: ...
    @property
    def groups(self) -> int: ...
    @property
    def width(self) -> int: ...


@dataclass(frozen=True)
class Standing:
    """A consumer layer in the middle of a removal: which columns stand, and what they weigh now.

    Attributes:
        consumer: name of the layer whose input columns are the groups.
        groups, width: its first ``groups * width`` columns are the groups, in order.
        original: (R, D), the weight before anything left, its bias as a last column.
        hessian: (D, D), 2/N sum x x^T of its inputs, not damped.
        weight: (R, D) as it is now: zero in what left, compensated in what stays.
        inverse: (D, D), H^-1 of what stays, zero in what left.
    """

    consumer: str
    groups: int
    width: int
    original: Tensor
    hessian: Tensor
    weight: Tensor
    inverse: Tensor


# the lowest leave first; those of groups that left already are not looked at
Score = Callable[[Standing], Tensor]


def columns_of_groups(groups: Tensor, width: int) -> Tensor:
    """Column indices of groups: (n,) -> (n * width,)."""
    return (groups[:, None] * width + torch.arange(width, device=groups.device)).flatten()


def per_group(columns: Tensor, groups: int, width: int) -> Tensor:
    """Sum over each group's columns: (..., D) -> (..., groups); what follows the groups is left."""
    return columns[..., : groups * width].unflatten(-1, (groups, width)).sum(dim=-1)
