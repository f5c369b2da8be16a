"""Mask rules of the column sweep: which weights of a block of columns go.

A rule is asked once a block, when the block's columns hold their already compensated values, and
answers with the kept weights. Counts are exact: the asked number of zeros, no more.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from compression.errors import CompressionError


class MaskRule(ABC):
    """Chooses kept weights (True) a block of columns at a time."""

    #: blocks handed to :meth:`keep` start at multiples of this many columns
    multiple: int = 1

    @abstractmethod
    def prepare(self, weight: Tensor, score: Tensor) -> None:
        """See the whole layer once: weight and OBS score w^2/[H^-1]_cc, each (G, R, C)."""

    @abstractmethod
    def keep(self, start: int, stop: int, score: Tensor) -> Tensor:
        """Kept weights of columns [start, stop) from their current score (G, R, stop-start)."""


def _lowest(score: Tensor, count: int) -> Tensor:
    """True at exactly ``count`` lowest entries; ties go to the earlier one."""
    chosen = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    chosen[torch.sort(score.reshape(-1), stable=True).indices[:count]] = True
    return chosen.reshape(score.shape)


class Unstructured(MaskRule):
    """``zeros`` weights anywhere in the layer; weights that are ``held`` stay zero and count.

    The layer's own OBS scores set how many zeros each block of columns owes, so that unimportant
    inputs lose more than important ones; within the block, the compensated weights decide
    (SparseGPT, arXiv 2301.00774, section 3.3, which spreads them evenly over the blocks instead).
    """

    def __init__(self, zeros: int, held: Tensor | None = None) -> None:
        """``held`` (G, R, C) is True where a weight was pruned before."""
        self.zeros, self.held = zeros, held
        self._first: Tensor | None = None

    def prepare(self, weight: Tensor, score: Tensor) -> None:
        held = 0 if self.held is None else int(self.held.sum())
        if not held <= self.zeros <= weight.numel():
            raise CompressionError(
                f"{self.zeros} zeros asked of {weight.numel()} weights, {held} of them held at zero"
            )
        self._first = _lowest(self._hold(score, 0, score.shape[-1]), self.zeros)

    def _hold(self, score: Tensor, start: int, stop: int) -> Tensor:
        if self.held is None:
            return score
        return score.masked_fill(self.held[..., start:stop], -1.0)

    def keep(self, start: int, stop: int, score: Tensor) -> Tensor:
        assert self._first is not None
        quota = int(self._first[..., start:stop].sum())
        return ~_lowest(self._hold(score, start, stop), quota)


class NofM(MaskRule):
    """``n`` weights kept of every ``m`` consecutive columns of a row (2:4 keeps two of four).

    Columns left over at the end of a row, fewer than ``m``, stay dense: the pattern does not
    cover them.
    """

    def __init__(self, n: int, m: int, held: Tensor | None = None) -> None:
        if not 0 < n <= m:
            raise CompressionError(f"pattern {n}:{m} keeps {n} of {m}; 0 < n <= m is needed")
        self.n, self.m, self.held = n, m, held
        self.multiple = m

    def prepare(self, weight: Tensor, score: Tensor) -> None:
        self._columns = weight.shape[-1]

    def keep(self, start: int, stop: int, score: Tensor) -> Tensor:
        whole = (stop - start) // self.m * self.m
        if self.held is not None:
            score = score.masked_fill(self.held[..., start:stop], -1.0)
        kept = torch.ones_like(score, dtype=torch.bool)
        groups = score[..., :whole].unflatten(-1, (-1, self.m))  # (G, R, W/m, m)
        order = torch.sort(groups, dim=-1, stable=True).indices[..., : self.m - self.n]
        kept[..., :whole] = (
            torch.ones_like(groups, dtype=torch.bool).scatter_(-1, order, False).flatten(-2)
        )
        if self.held is not None:
            kept &= ~self.held[..., start:stop]
        return kept


class Fixed(MaskRule):
    """A mask decided elsewhere: the sweep then only compensates (and rounds)."""

    def __init__(self, kept: Tensor) -> None:
        self.kept = kept

    def prepare(self, weight: Tensor, score: Tensor) -> None:
        if self.kept.shape != weight.shape:
            raise CompressionError(
                f"mask of shape {tuple(self.kept.shape)} given for a weight of "
                f"shape {tuple(weight.shape)}"
            )

    def keep(self, start: int, stop: int, score: Tensor) -> Tensor:
        return self.kept[..., start:stop]


def parse_pattern(pattern: str) -> tuple[int, int] | None:
    """(n, m) of a pattern such as '2:4'; None for 'unstructured'.

    Raises:
        CompressionError: for anything else.
    """
    if pattern == "unstructured":
        return None
    match = re.fullmatch(r"(\d+):(\d+)", pattern)
    if match and 0 < int(match[1]) < int(match[2]):
        return int(match[1]), int(match[2])
    raise CompressionError(f"pattern {pattern!r}: give 'unstructured' or N:M with 0 < N < M")
