"""Mask rules of the column sweep: which weights of a block of columns go.

A rule is asked once a block, when the block's columns hold their already compensated values, and
answers with the kept weights. Counts are exact: the asked number of zeros, no more.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence

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


_MANY = 1 << 20  # entries from which on a sample is looked at first
_SAMPLE = 1 << 14  # its size


def lowest(score: Tensor, count: int) -> Tensor:
    """True at exactly ``count`` lowest entries; ties go to the earlier one."""
    if not 0 < count < score.numel():
        return torch.full_like(score, count > 0, dtype=torch.bool)
    flat = score.reshape(-1)
    if flat.device.type != "cpu":  # one block of threads selects there; all of them sort
        chosen = torch.zeros_like(flat, dtype=torch.bool)
        chosen[torch.sort(flat, stable=True).indices[:count]] = True
        return chosen.reshape(score.shape)
    # selection, since only the edge matters: sorting orders everything
    edge = kth_lowest(flat, count)
    chosen = flat <= edge
    surplus = int(chosen.count_nonzero()) - count
    if surplus < 0:  # NaN is at most nothing
        raise CompressionError("scores are not finite: the weights or the inputs hold NaN")
    if surplus:
        level = (flat == edge).nonzero().squeeze(1)  # rising
        chosen[level[-surplus:]] = False
    return chosen.reshape(score.shape)


def lowest_of_each(score: Tensor, counts: Tensor) -> Tensor:
    """True at exactly ``counts`` (L,) lowest entries of each row (L, n); ties as :func:`lowest`.

    Sorts all rows at once and asks the device for nothing.
    """
    order = torch.sort(score, dim=1, stable=True).indices
    first = torch.arange(score.shape[1], device=score.device) < counts[:, None]
    return torch.zeros_like(first).scatter_(1, order, first)


def kth_lowest(flat: Tensor, k: int) -> Tensor:
    """The k-th lowest entry, k from 1 on; of many, only those near a sample's k-th are ordered."""
    size = len(flat)
    if flat.device.type != "cpu":
        return flat.sort().values[k - 1]
    if size > _MANY:
        sample = flat[:: size // _SAMPLE | 1].sort().values  # odd: no column is passed over
        at, slack = k * len(sample) // size, 3 * math.isqrt(len(sample))
        low, high = sample[max(at - slack, 0)], sample[min(at + slack, len(sample) - 1)]
        below = int((flat < low).count_nonzero())
        near = flat[(flat >= low) & (flat <= high)]
        if below < k <= below + len(near):
            flat, k = near, k - below
    return flat.kthvalue(k).values


class Unstructured(MaskRule):
    """``zeros`` weights anywhere in the layer; weights that are ``held`` stay zero and count.

    The layer's own OBS scores set how many zeros each block of columns owes, so that unimportant
    inputs lose more than important ones; within the block, the compensated weights decide
    (SparseGPT, arXiv 2301.00774, section 3.3, which spreads them evenly over the blocks instead).
    """

    def __init__(self, zeros: int, held: Tensor | None = None) -> None:
        """``held`` (G, R, C) is True where a weight was pruned before."""
        self.zeros, self.held = zeros, held
        self._owed: list[int] = []  # zeros a column owes by the first look

    def prepare(self, weight: Tensor, score: Tensor) -> None:
        self.require_room(weight)
        first = lowest(self.held_first(score, 0, score.shape[-1]), self.zeros)
        self._owed = first.sum(dim=(0, 1), dtype=torch.int32).tolist()

    def require_room(self, weight: Tensor) -> None:
        """Raise `CompressionError` where fewer zeros are asked than are held, or too many."""
        held = 0 if self.held is None else int(self.held.count_nonzero())
        if not held <= self.zeros <= weight.numel():
            raise CompressionError(
                f"{self.zeros} zeros asked of {weight.numel()} weights, {held} of them held at zero"
            )

    def held_first(self, score: Tensor, start: int, stop: int) -> Tensor:
        """Scores of columns [start, stop), those of held weights below all others."""
        if self.held is None:
            return score
        return score.masked_fill(self.held[..., start:stop], -1.0)

    def keep(self, start: int, stop: int, score: Tensor) -> Tensor:
        return ~lowest(self.held_first(score, start, stop), sum(self._owed[start:stop]))


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


# where counts are chosen for all parts at once, not part after part by selection
_AT_ONCE = {"cuda"}


class Several(MaskRule):
    """Rules for equal parts of the rows, one below the other: several answers of one sweep."""

    def __init__(self, rules: Sequence[MaskRule]) -> None:
        self.rules = tuple(rules)
        self.multiple = math.lcm(*(rule.multiple for rule in self.rules))
        self._counted = [rule for rule in self.rules if isinstance(rule, Unstructured)]
        self._owed: Tensor | None = None  # (L, C): zeros that each part's columns owe

    def prepare(self, weight: Tensor, score: Tensor) -> None:
        if score.device.type in _AT_ONCE and len(self._counted) == len(self.rules):
            for rule, part in zip(self._counted, self._parts(weight), strict=True):
                rule.require_room(part)
            zeros = torch.tensor([rule.zeros for rule in self._counted], device=score.device)
            self._owed = self._lowest(score, 0, zeros).sum(dim=(1, 2))
            return
        parts = zip(self.rules, self._parts(weight), self._parts(score), strict=True)
        for each, own_weight, own_score in parts:
            each.prepare(own_weight, own_score)

    def keep(self, start: int, stop: int, score: Tensor) -> Tensor:
        if self._owed is not None:
            gone = self._lowest(score, start, self._owed[:, start:stop].sum(dim=1))
            return ~gone.transpose(0, 1).flatten(1, 2)  # (G, L R, W)
        parts = zip(self.rules, self._parts(score), strict=True)
        return torch.cat([rule.keep(start, stop, part) for rule, part in parts], dim=-2)

    def _lowest(self, score: Tensor, start: int, counts: Tensor) -> Tensor:
        """True at each part's ``counts`` lowest scores: (L, G, R, W)."""
        stop = start + score.shape[-1]
        parts = [
            rule.held_first(part, start, stop)
            for rule, part in zip(self._counted, self._parts(score), strict=True)
        ]
        each = torch.stack(parts)
        return lowest_of_each(each.flatten(1), counts).view(each.shape)

    def _parts(self, whole: Tensor) -> Sequence[Tensor]:
        return whole.chunk(len(self.rules), dim=-2)


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
