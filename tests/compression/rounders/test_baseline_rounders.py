"""Oracles of round-to-nearest and AdaQuant: brute force, the grid, the order of losses."""

from __future__ import annotations

import itertools

import pytest
import torch

from compression.grids import BlockwiseGrid, Grid, row_grid
from compression.problem import LayerProblem
from compression.rounders import METHODS

F64 = torch.float64


def problem_of(generator, shape=(1, 8, 40), bias=True, samples=200) -> LayerProblem:
    groups, rows, columns = shape
    x = torch.randn(groups, samples, columns, generator=generator, dtype=F64)
    x = x @ torch.randn(groups, columns, columns, generator=generator, dtype=F64) + 0.5
    if bias:
        x = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
    weight = torch.randn(shape, generator=generator, dtype=F64)
    shift = torch.randn(groups, rows, generator=generator, dtype=F64) if bias else None
    return LayerProblem("layer", weight, shift, 2 / samples * x.mT @ x, samples, 0.01)


def sparse(problem: LayerProblem, kept: torch.Tensor) -> LayerProblem:
    weight = problem.weight * kept
    return LayerProblem("layer", weight, problem.bias, problem.hessian, problem.samples, 0.01)


def grid_of(problem: LayerProblem, bits: int, block: int | None) -> Grid | BlockwiseGrid:
    if block is None:
        return row_grid(problem.weight, bits=bits)
    return BlockwiseGrid(problem.weight, bits=bits, block=block)


GRIDS = [(8, None), (4, None), (4, 16)]  # 40 columns: the last block is half a block


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("bits", "block"), GRIDS)
@pytest.mark.parametrize("shape", [(1, 8, 40), (3, 4, 40)])
def test_it_lands_on_the_grid_and_zeros_stay(generator, name, bits, block, shape) -> None:
    kept = torch.rand(shape, generator=generator) > 0.4
    problem = sparse(problem_of(generator, shape), kept)
    grid = grid_of(problem, bits, block)
    solved = METHODS.load(name)(problem, kept, grid)
    integers = grid.integers(solved.weight)
    assert torch.equal(integers * grid.spread(40), solved.weight)
    assert int(integers.abs().max()) <= 2 ** (bits - 1) - 1
    assert bool((solved.weight[~kept] == 0).all())
    assert torch.equal(solved.kept, kept)


@pytest.mark.parametrize(("bits", "block"), GRIDS)
def test_nearest_is_nearest(generator, bits, block) -> None:
    problem = problem_of(generator)
    grid = grid_of(problem, bits, block)
    solved = METHODS.load("rtn")(problem, problem.weight != 0, grid)
    scale = grid.spread(40)
    values = torch.arange(-grid.limit, grid.limit + 1, dtype=F64) * scale[..., None]
    best = (values - problem.weight[..., None]).abs().amin(-1)
    assert torch.allclose((solved.weight - problem.weight).abs(), best)
    assert torch.equal(solved.bias, problem.bias)


@pytest.mark.parametrize(("bits", "block"), GRIDS)
@pytest.mark.parametrize("bias", [False, True])
def test_adaquant_is_never_above_nearest_and_well_below_it(generator, bits, block, bias) -> None:
    problem = problem_of(generator, bias=bias)
    losses = {}
    for name in METHODS:
        solved = METHODS.load(name)(problem, problem.weight != 0, grid_of(problem, bits, block))
        losses[name] = problem.loss(solved)
    assert losses["adaquant"] < 0.8 * losses["rtn"]
    assert losses["adaquant"] < 2 * losses["gptq"]


def test_every_row_of_adaquant_is_at_most_nearest(generator) -> None:
    problem = problem_of(generator, (1, 30, 12), bias=False)
    rows = {}
    for name in ("rtn", "adaquant"):
        solved = METHODS.load(name)(problem, problem.weight != 0, row_grid(problem.weight, bits=3))
        change = solved.weight - problem.original
        rows[name] = ((change @ problem.factor.damped) * change).sum(-1)
    assert bool((rows["adaquant"] <= rows["rtn"] * (1 + 1e-12)).all())


def test_adaquant_is_close_to_the_best_of_all_roundings(generator) -> None:
    """Four weights a row, three bits: 7^4 roundings at the scale that it ended with."""
    found, best = 0.0, 0.0
    problem = problem_of(generator, (1, 20, 4), bias=False)
    grid = row_grid(problem.weight, bits=3)
    solved = METHODS.load("adaquant")(problem, problem.weight != 0, grid)
    damped = problem.factor.damped[0]
    every = torch.tensor(list(itertools.product(range(-3, 4), repeat=4)), dtype=F64)
    for row in range(20):
        change = every * grid.scale[0, row] - problem.original[0, row]
        best += float(((change @ damped) * change).sum(-1).min())
        ours = solved.weight[0, row] - problem.original[0, row]
        found += float(ours @ damped @ ours)
    assert best <= found * (1 + 1e-9)
    assert found < 1.3 * best


def test_the_bias_takes_up_the_mean_shift(generator) -> None:
    """With the weights fixed, no other bias is better."""
    problem = problem_of(generator)
    solved = METHODS.load("adaquant")(
        problem, problem.weight != 0, row_grid(problem.weight, bits=4)
    )
    for step in (-1e-3, 1e-3):
        moved = type(solved)(solved.weight, solved.bias + step, solved.kept)
        assert problem.loss(moved) > problem.loss(solved)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_twice(generator, name) -> None:
    problem = problem_of(generator)
    one, two = (
        METHODS.load(name)(problem, problem.weight != 0, grid_of(problem, 4, 16)) for _ in range(2)
    )
    assert torch.equal(one.weight, two.weight)


def test_adaquant_runs_in_float32_where_gradients_are_off(generator) -> None:
    whole = problem_of(generator)
    problem = LayerProblem(
        "layer", whole.weight.float(), whole.bias.float(), whole.hessian.float(), 200, 0.01
    )
    grid = row_grid(problem.weight, bits=4)
    with torch.no_grad():
        solved = METHODS.load("adaquant")(problem, problem.weight != 0, grid)
    assert solved.weight.dtype == torch.float32 and not solved.weight.requires_grad
