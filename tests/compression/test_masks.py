"""Exact selection of the lowest entries, held against a sort."""

from __future__ import annotations

import pytest
import torch

from compression import masks
from compression.errors import CompressionError
from compression.masks import lowest


def sorted_lowest(score: torch.Tensor, count: int) -> torch.Tensor:
    chosen = torch.zeros(score.numel(), dtype=torch.bool)
    chosen[torch.sort(score.reshape(-1), stable=True).indices[:count]] = True
    return chosen.reshape(score.shape)


@pytest.mark.parametrize("many", [10, 1 << 20])  # with and without a look at a sample
@pytest.mark.parametrize("kind", ["distinct", "ties", "held", "rising"])
@pytest.mark.parametrize("count", [0, 1, 3, 600, 4799, 4800])
def test_exactly_so_many_and_ties_go_to_the_earlier(
    generator, monkeypatch, many, kind, count
) -> None:
    monkeypatch.setattr(masks, "_MANY", many)
    monkeypatch.setattr(masks, "_SAMPLE", 64)
    score = torch.rand(2, 40, 60, generator=generator) ** 4
    if kind == "ties":
        score = torch.randint(0, 7, score.shape, generator=generator).float()
    if kind == "held":
        score = torch.where(score < 0.05, -1.0, score)
    if kind == "rising":
        score = score.flatten().sort().values.reshape(score.shape)
    assert torch.equal(lowest(score, count), sorted_lowest(score, count))
    if kind == "distinct":  # a view whose memory is in another order
        turned = score.mT
        assert torch.equal(lowest(turned, count), sorted_lowest(turned, count))


def test_a_sample_that_misleads_does_no_harm(generator, monkeypatch) -> None:
    monkeypatch.setattr(masks, "_MANY", 10)
    monkeypatch.setattr(masks, "_SAMPLE", 64)
    score = torch.rand(6400, generator=generator)
    score[::100] = 0.999 + 0.0001 * torch.rand(64, generator=generator)  # all that is sampled
    assert torch.equal(lowest(score, 700), sorted_lowest(score, 700))


@pytest.mark.parametrize("size", [10, 1 << 21], ids=["few", "many"])
def test_scores_that_are_no_numbers_are_refused(size: int) -> None:
    """Otherwise fewer zeros than asked would be set, and nobody told."""
    with pytest.raises(CompressionError, match="not finite"):
        lowest(torch.full((size,), torch.nan), size // 2)
