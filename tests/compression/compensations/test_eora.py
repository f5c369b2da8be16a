"""The factors against brute force and the paper's formula; a pruned model with them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from compression.compensate import Factors, compensated, factors_of, store_factors
from compression.compensations import METHODS
from compression.hessian import damp
from compression.layers import matrix_of
from compression.masks import Unstructured
from compression.problem import LayerProblem, Solved
from compression.prune import masks_of, prune_layers
from compression.pruners.sweep import prune
from models.low_rank import LowRankConv2d, add_low_rank
from tests.compression.compensations.problems import (
    COLUMNS,
    ROWS,
    inputs,
    linear,
    loss_of,
    problem_of,
)
from tests.compression.shapes import Piece


def half(problem: LayerProblem) -> Solved:
    """Every second weight set to zero, nothing compensated."""
    kept = torch.zeros_like(problem.weight, dtype=torch.bool)
    kept[..., ::2] = True
    return Solved(problem.weight * kept, problem.bias, kept)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rank", [1, 2])  # of an error of rank 3
def test_no_factors_of_the_rank_and_no_bias_do_better(bias: bool, rank: int) -> None:
    layer = linear(bias, rank)
    problem = problem_of(layer, inputs())
    given = half(problem)
    found, loss = compensated(layer, problem, given, "eora")
    assert loss == pytest.approx(
        float(loss_of(problem, given.weight + _product(layer), found.bias).detach())
    )
    best = float("inf")
    for seed in range(2):  # brute force: descend from random starts
        generator = torch.Generator().manual_seed(seed)
        shapes = [(1, ROWS, rank), (1, rank, COLUMNS), *([(1, ROWS)] if bias else [])]
        free = [
            torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
            for shape in shapes
        ]
        optimiser = torch.optim.LBFGS(
            free, max_iter=300, tolerance_grad=1e-8, tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure(free: list[Tensor] = free, optimiser: torch.optim.Optimizer = optimiser):
            optimiser.zero_grad()
            value = loss_of(problem, given.weight + free[0] @ free[1], free[2] if bias else None)
            value.backward()
            return value

        optimiser.step(closure)  # type: ignore[arg-type]
        best = min(best, float(closure().detach()))
    assert best * (1 - 1e-3) < loss < best * (1 + 1e-9)  # descent comes near from above
    assert loss < problem.loss(given)


def _product(layer: nn.Linear | nn.Conv2d) -> Tensor:
    factors = factors_of(layer)
    assert factors is not None
    return factors.product


@pytest.mark.parametrize("rank", [1, 3])
def test_the_product_is_the_papers(rank: int) -> None:
    """B A = truncated SVD of dW Q Lambda^(1/2), times its inverse: without a bias, to the digit."""
    layer = linear(False, rank)
    problem = problem_of(layer, inputs())
    given = half(problem)
    compensated(layer, problem, given, "eora")
    damped, _ = damp(problem.hessian, problem.rel_damp)
    values, vectors = torch.linalg.eigh(damped[0])
    root = vectors * values.sqrt()
    p, s, q = torch.linalg.svd((problem.weight - given.weight)[0] @ root, full_matrices=False)
    expected = (p[:, :rank] * s[:rank]) @ q[:rank] @ torch.linalg.inv(root)
    torch.testing.assert_close(_product(layer)[0], expected)
    left = (s[rank:] ** 2).sum() / 2
    assert problem.loss(Solved(given.weight + _product(layer), None, given.kept)) == pytest.approx(
        float(left)
    )


@pytest.mark.parametrize("bias", [True, False])
def test_at_the_full_rank_nothing_is_lost(bias: bool) -> None:
    layer = linear(bias, min(ROWS, COLUMNS))
    problem = problem_of(layer, inputs())
    found, loss = compensated(layer, problem, half(problem), "eora")
    assert loss < 1e-20 * float(damp(problem.hessian, 0.01)[0].norm())
    torch.testing.assert_close(found.weight + _product(layer), problem.weight)


@pytest.mark.parametrize("method", METHODS)
def test_a_rank_that_is_more_than_full_and_rank_nothing(method: str) -> None:
    layer = linear(True, 11)
    problem = problem_of(layer, inputs())
    _, loss = compensated(layer, problem, half(problem), method)
    factors = factors_of(layer)
    assert factors is not None and not factors.up[..., min(ROWS, COLUMNS) :].any()
    if method == "none":
        assert not factors.product.any()
        assert loss <= problem.loss(half(problem))  # the bias alone is refitted
    plain = nn.Linear(COLUMNS, ROWS).double()
    problem = problem_of(plain, inputs())
    given = half(problem)
    assert compensated(plain, problem, given, method) == (given, problem.loss(given))


def test_the_sweeps_bias_is_the_best_one_already() -> None:
    layer = linear(True, 1)
    problem = problem_of(layer, inputs())
    solved = prune(problem, Unstructured(20))
    found, loss = compensated(layer, problem, solved, "none")
    torch.testing.assert_close(found.bias, solved.bias)
    assert loss == pytest.approx(problem.loss(solved))


def test_more_rank_never_costs_and_the_second_rung_begins_where_the_first_ended() -> None:
    losses = []
    for rank in range(1, 7):
        layer = linear(True, rank)
        problem = problem_of(layer, inputs())
        losses.append(compensated(layer, problem, prune(problem, Unstructured(30)), "eora")[1])
    assert losses == sorted(losses, reverse=True)
    layer = linear(True, 2)
    first = problem_of(layer, inputs())
    solved, _ = compensated(layer, first, prune(first, Unstructured(20)), "eora")
    with torch.no_grad():
        layer.weight.copy_(solved.weight[0])
        layer.bias.copy_(solved.bias[0])  # type: ignore[index]
    before = layer.weight + _product(layer)[0]
    second = problem_of(layer, inputs())
    again, loss = compensated(
        layer, second, Solved(second.weight, second.bias, solved.kept), "eora"
    )
    # nothing more was pruned: what stood there is of that rank, so it comes back
    assert loss < 1e-18
    torch.testing.assert_close(again.weight[0] + _product(layer)[0], before)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_with_factors_is_one_with_the_sum(kernel: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        plain = nn.Conv2d(3, 8, kernel, stride=2, padding=kernel // 2)
        layer = LowRankConv2d(plain, 4)
        x = torch.randn(5, 3, 9, 9)
    assert torch.equal(layer(x), plain(x))
    generator = torch.Generator().manual_seed(0)
    columns = 3 * kernel * kernel
    up, down = (torch.randn(1, *s, generator=generator) for s in ((8, 4), (4, columns)))
    store_factors(layer, Factors(up, down))
    both = copy.deepcopy(plain)
    with torch.no_grad():
        both.weight += (up @ down).view_as(plain.weight)
    torch.testing.assert_close(layer(x), both(x), rtol=1e-4, atol=1e-5)
    assert matrix_of(layer).shape == (1, 8, columns)


@pytest.mark.parametrize("rank", [2, 6])
def test_a_walk_shows_later_layers_what_compensated_ones_put_out(rank: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        dense = nn.Sequential(
            nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 24), nn.Linear(24, 20)
        ).eval()
        batches = [(torch.randn(64, 3, 4, 4),) for _ in range(4)]
    zeros = {"0": 243, "3": 864, "4": 360}
    seen = {}
    for method, ranks in (("none", {}), ("eora", dict.fromkeys(zeros, rank))):
        model = copy.deepcopy(dense)
        add_low_rank(model, ranks)
        pieces = [Piece(name, model.get_submodule(name)) for name in zeros]
        kept, losses = prune_layers(model, pieces, lambda: batches, zeros, compensation=method)
        assert {name: int((~mask).sum()) for name, mask in masks_of(model, kept).items()} == zeros
        x = batches[0][0]
        with torch.no_grad():
            seen[method] = (float((model(x) - dense(x)).square().mean()), losses)
    assert seen["eora"][0] < seen["none"][0]
    assert seen["eora"][1]["0"] < seen["none"][1]["0"]  # later layers see other inputs
