"""Models that fit on a page: residual branches, and what compression is told of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Unit:
    name: str
    consumer: str
    groups: int
    width: int = 1


@dataclass(frozen=True)
class Branch:
    name: str
    units: tuple[Unit, ...]


@dataclass(frozen=True)
class Piece:
    name: str
    module: nn.Module


class Block(nn.Module):
    """x + fc2(act(fc1(x))): the smallest residual branch."""

    def __init__(self, width: int, hidden: int, act: nn.Module | None = None) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = (
            nn.Linear(width, hidden),
            nn.ReLU() if act is None else act,
            nn.Linear(hidden, width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(self.act(self.fc1(x)))
