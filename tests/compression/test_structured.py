"""Structured OBS against least squares from scratch, brute force and other choices of groups."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from compression.errors import CompressionError
from compression.hessian import layer_loss
from compression.structured import least_squares, remove_groups


def problem(generator: torch.Generator, groups: int, width: int, rows: int = 7):
    """A weight with a bias column and the damped Hessian of correlated inputs, float64."""
    size = groups * width + 1
    mixing = torch.randn(size, size, generator=generator, dtype=torch.float64)
    inputs = torch.randn(300, size, generator=generator, dtype=torch.float64) @ mixing + 0.5
    inputs[:, -1] = 1
    hessian = 2 / 300 * inputs.T @ inputs + 0.1 * torch.eye(size, dtype=torch.float64)
    weight = torch.randn(rows, size, generator=generator, dtype=torch.float64)
    return weight, hessian


def columns(groups: Tensor, width: int, bias: int) -> Tensor:
    owned = (groups[:, None] * width + torch.arange(width)).flatten()
    return torch.cat([owned, torch.tensor([bias])])


def loss_of(solved: Tensor, weight: Tensor, hessian: Tensor) -> float:
    return float(layer_loss((solved - weight)[None], hessian[None]))


@pytest.mark.parametrize(("groups", "width"), [(24, 1), (6, 4), (5, 9)])
@pytest.mark.parametrize("rounds", [2, 64])
def test_what_stays_is_the_least_squares_solution(generator, groups, width, rounds):
    weight, hessian = problem(generator, groups, width)
    counts = [groups, groups // 2, 1, 0]
    for found in remove_groups(
        weight, hessian, groups=groups, width=width, keep=counts, rounds=rounds
    ):
        kept = columns(found.kept, width, groups * width)
        from_scratch = least_squares(weight, hessian, kept)
        torch.testing.assert_close(found.weight, from_scratch, rtol=1e-8, atol=1e-9)
        assert found.loss == pytest.approx(loss_of(found.weight, weight, hessian), rel=1e-9)
        gone = torch.ones(groups * width + 1, dtype=torch.bool)
        gone[kept] = False
        assert not found.weight[:, gone].any()


def test_counts_are_exact_and_nested(generator):
    weight, hessian = problem(generator, 24, 1)
    found = remove_groups(weight, hessian, groups=24, width=1, keep=[24, 17, 17, 3, 0], rounds=5)
    assert [len(level.kept) for level in found] == [24, 17, 17, 3, 0]
    for larger, smaller in itertools.pairwise(found):
        assert set(smaller.kept.tolist()) <= set(larger.kept.tolist())
    assert torch.equal(found[0].weight, weight)


def test_one_group_at_a_time_takes_the_best_first_group(generator):
    weight, hessian = problem(generator, 6, 3)
    (found,) = remove_groups(weight, hessian, groups=6, width=3, keep=[5])
    brute = {}
    for gone in range(6):
        kept = torch.tensor([g for g in range(6) if g != gone])
        solved = least_squares(weight, hessian, columns(kept, 3, 18))
        brute[gone] = loss_of(solved, weight, hessian)
    best = min(brute, key=brute.__getitem__)
    assert set(range(6)) - set(found.kept.tolist()) == {best}
    assert found.loss == pytest.approx(brute[best], rel=1e-9)


def test_greedy_is_near_brute_force_and_ahead_of_magnitude_on_the_mean(generator):
    to_best, magnitude_to_best = [], []
    for _ in range(12):
        weight, hessian = problem(generator, 8, 2)
        (found,) = remove_groups(weight, hessian, groups=8, width=2, keep=[4])

        def loss(kept: Tensor, weight: Tensor = weight, hessian: Tensor = hessian) -> float:
            solved = least_squares(weight, hessian, columns(kept, 2, 16))
            return loss_of(solved, weight, hessian)

        best = min(loss(torch.tensor(kept)) for kept in itertools.combinations(range(8), 4))
        norms = weight[:, :16].unflatten(1, (8, 2)).square().sum(dim=(0, 2))
        assert best <= found.loss * (1 + 1e-9)
        to_best.append(found.loss / best)
        magnitude_to_best.append(loss(norms.topk(4).indices.sort().values) / best)
    assert sum(to_best) / 12 < 1.2
    assert sum(to_best) < 0.9 * sum(magnitude_to_best), "completed by least squares alike"


def test_an_unused_group_leaves_first_and_costs_nothing(generator):
    weight, hessian = problem(generator, 6, 2)
    weight[:, 4:6] = 0
    (found,) = remove_groups(weight, hessian, groups=6, width=2, keep=[5])
    assert 2 not in found.kept
    assert found.loss == 0
    assert torch.equal(found.weight, weight)


@pytest.mark.parametrize("keep", [[], [7], [3, 4], [-1]])
def test_counts_that_make_no_sense_are_refused(generator, keep):
    weight, hessian = problem(generator, 6, 1)
    with pytest.raises(CompressionError, match="keep"):
        remove_groups(weight, hessian, groups=6, width=1, keep=keep)


def test_an_indefinite_hessian_is_refused(generator):
    weight, hessian = problem(generator, 6, 1)
    hessian[0, 0] = -1.0
    with pytest.raises(CompressionError, match="positive definite"):
        remove_groups(weight, hessian, groups=6, width=1, keep=[3])
