"""Convolutions as matrices: the columns that are picked are those of the whole unfolding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compression.layers import columns_of

CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 6},
    {"kernel_size": (3, 5), "stride": (1, 2), "padding": (2, 0), "groups": 2},
    {"kernel_size": 3, "dilation": (2, 1), "padding": "same", "groups": 3},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 1, "padding": 1},
    {"kernel_size": 7, "padding": "valid"},
]


@pytest.mark.parametrize("settings", CONVOLUTIONS)
def test_picked_columns_are_those_of_the_unfolded_input(
    settings: dict[str, Any], generator: torch.Generator
) -> None:
    conv = nn.Conv2d(6, 12, **settings)
    x = torch.randn(3, 6, 11, 9, generator=generator)
    padded = F.pad(x, conv._reversed_padding_repeated_twice)
    unfolded = F.unfold(padded, conv.kernel_size, dilation=conv.dilation, stride=conv.stride)
    rows = unfolded.mT.reshape(-1, unfolded.shape[1])  # (B * L, channels * kh * kw)
    wanted = torch.randint(len(rows), (20,), generator=generator)
    told: list[int] = []

    def pick(count: int) -> torch.Tensor:
        told.append(count)
        return wanted

    size = rows.shape[1] // conv.groups
    by_group = rows.reshape(-1, conv.groups, size).transpose(0, 1)
    assert torch.equal(columns_of(conv, x), by_group)
    assert torch.equal(columns_of(conv, x, pick), by_group[:, wanted])
    assert told == [len(rows)]
