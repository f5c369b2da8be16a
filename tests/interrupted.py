"""Loops that are killed after every checkpoint: the end must be the same, to the last bit."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tasks.partial import Partial


class Interrupted(Exception):
    """What a kill is in a test: raised right after a state was saved."""


class Mortal:
    """A keeper on disk that always saves, and dies after some saves."""

    def __init__(self, partial: Partial, left: list[int]) -> None:
        self.partial, self.left = partial, left

    def load(self) -> dict[str, Any] | None:
        return self.partial.load()

    def due(self, size: int = 0) -> bool:
        return True

    def save(self, state: Mapping[str, Any]) -> None:
        self.partial.save(state)
        self.left[0] -= 1
        if self.left[0] == 0:
            raise Interrupted

    def part(self, name: str) -> Mortal:
        return Mortal(self.partial.part(name), self.left)


def limp(work: Callable[[Any], Any], folder: Path) -> tuple[Any, int]:
    """Run `work(keeper)` again and again, killed at its first save each time, until it ends.

    The global random generators are others each time. Returns what it gives, and the kills.
    """
    for kills in range(10_000):
        torch.manual_seed(kills + 100)
        random.seed(kills + 100)
        try:
            return work(Mortal(Partial(folder, every=0), [1])), kills
        except Interrupted:
            pass
    raise AssertionError("no attempt gets further than the one before")


def same(one: Any, two: Any) -> bool:
    """Whether two nests of values and tensors are equal bit by bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and one.shape == two.shape and bool((one == two).all())
    if isinstance(one, Mapping):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return repr(one) == repr(two)
