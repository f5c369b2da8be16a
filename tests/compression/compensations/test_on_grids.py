"""Factors for what rounding took, rounded themselves: against the exact ones and brute force."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from compression.compensate import compensated, compensated_on_grids, factors_of
from compression.grids import row_grid
from compression.layers import Layer, matrix_of
from compression.problem import LayerProblem, Solved
from compression.quantize import quantize_weights
from compression.rounders.gptq import round_weights
from models.low_rank import LowRankLinear, add_low_rank
from tests.compression.compensations.problems import inputs, linear, loss_of, problem_of
from tests.compression.shapes import Piece


def rounded(problem: LayerProblem, bits: int):
    grid = row_grid(problem.weight, bits=bits)
    return round_weights(problem, problem.weight != 0, grid)


def on_grid(name: str, layer: Layer, problem: LayerProblem, *, bits: int) -> Tensor:
    return rounded(problem, bits).weight


def total(problem: LayerProblem, layer: nn.Linear, found) -> float:
    factors = factors_of(layer)
    assert factors is not None
    return float(loss_of(problem, found.weight + factors.product, found.bias))


@pytest.mark.parametrize("bias", [True, False])
def test_on_a_fine_grid_they_are_the_exact_ones(bias: bool) -> None:
    exact, ours = linear(bias, 2), linear(bias, 2)
    problem = problem_of(exact, inputs())
    given = rounded(problem, 3)
    _, least = compensated(exact, problem, given, "eora")
    fine = partial(on_grid, bits=24)
    found, loss = compensated_on_grids("x", ours, problem, given, "eora", fine)
    assert loss == pytest.approx(total(problem, ours, found), rel=1e-6)
    # the damping of B's own problem is all that differs
    assert least * (1 - 1e-9) <= loss <= least * 1.01


@pytest.mark.parametrize("bias", [True, False])
def test_four_bits_for_the_factors_still_gain(bias: bool) -> None:
    layer = linear(bias, 2)
    problem = problem_of(layer, inputs())
    given = rounded(problem, 3)
    coarse = partial(on_grid, bits=4)
    found, loss = compensated_on_grids("x", layer, problem, given, "eora", coarse)
    assert loss == pytest.approx(total(problem, layer, found))
    assert loss < 0.5 * problem.loss(given)
    # W keeps its integers, and without a bias nothing else moves
    assert torch.equal(found.weight, given.weight)


@pytest.mark.parametrize("bias", [True, False])
def test_no_other_b_and_bias_do_better_beside_a_rounded_a(bias: bool) -> None:
    layer = linear(bias, 2)
    problem = problem_of(layer, inputs(), rel_damp=1e-9)
    given = rounded(problem, 3)

    def only_a(name: str, layer: Layer, of: LayerProblem) -> Tensor:
        return of.weight if name.endswith(".up") else on_grid(name, layer, of, bits=3)

    found, loss = compensated_on_grids("x", layer, problem, given, "eora", only_a)
    factors = factors_of(layer)
    assert factors is not None
    up = factors.up.clone().requires_grad_()
    free = [up]
    if bias:
        assert found.bias is not None
        free.append(found.bias.clone().requires_grad_())
    value = loss_of(problem, given.weight + up @ factors.down, free[-1] if bias else None)
    assert float(value.detach()) == pytest.approx(loss)
    slopes = torch.autograd.grad(value, free)
    scale = float(problem.hessian.diagonal(dim1=-2, dim2=-1).mean())
    assert all(float(slope.abs().max()) < 1e-5 * scale for slope in slopes)


@pytest.mark.parametrize("move", [1e-4, 0.0])
def test_inputs_that_hardly_vary_are_no_error(move: float) -> None:
    """About their mean nothing is left but rounding; only the damping says what matters."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        layer = LowRankLinear(nn.Linear(24, 16), 4)
        x = torch.randn(1, 24) + move * torch.randn(300, 24)
    problem = problem_of(layer, x)
    given = rounded(problem, 3)
    found, loss = compensated_on_grids("x", layer, problem, given, "eora", partial(on_grid, bits=4))
    assert loss <= problem.loss(given) * (1 + 1e-6)
    assert found.bias is not None and found.bias.isfinite().all()


@pytest.mark.parametrize("dead", [0, 2])
def test_dead_inputs_take_nothing_of_the_rank(dead: int) -> None:
    """Round to nearest leaves weights that multiply nothing; they are no error."""
    layer = linear(False, 2)
    x = inputs()
    x[:, :dead] = 0.0
    problem = problem_of(layer, x)
    grid = row_grid(problem.weight, bits=3)
    given = Solved(grid.nearest(problem.weight), None, problem.weight != 0)
    error = (given.weight - problem.weight)[0]
    live = float(((x @ error.mT) ** 2).mean() * error.shape[0])
    # but for the damping, 1/2 tr(dW H dW^T) is the mean squared error of the outputs
    assert problem.loss(given) == pytest.approx(live, rel=0.05)
    compensated_on_grids("x", layer, problem, given, "eora", partial(on_grid, bits=8))
    factors = factors_of(layer)
    assert factors is not None
    left = error + factors.product[0]
    assert float(((x @ left.mT) ** 2).sum()) < 0.5 * float(((x @ error.mT) ** 2).sum())


def network() -> tuple[nn.Sequential, list[tuple[Tensor]]]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        dense = nn.Sequential(
            nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 24), nn.Linear(24, 20)
        ).eval()
        return dense, [(torch.randn(64, 3, 4, 4),) for _ in range(4)]


@pytest.mark.parametrize(("bits", "block", "names"), [(8, None, "034"), (4, 8, "34")])
def test_a_walk_rounds_layers_and_their_factors(bits: int, block: int | None, names: str) -> None:
    dense, batches = network()
    seen, walked = {}, dict.fromkeys(names, 4)
    for method in ("none", "eora"):
        model = copy.deepcopy(dense)
        if method == "eora":
            add_low_rank(model, walked)
        pieces = [Piece(name, model.get_submodule(name)) for name in "034"]
        grids = quantize_weights(
            model, pieces, lambda: batches, list(names), bits=bits, block=block,
            compensation=method,
        )  # fmt: skip
        parts = ("", ".down", ".up") if method == "eora" else ("",)
        assert set(grids) == {name + part for name in names for part in parts}
        for name, (integers, scale) in grids.items():
            layer = model.get_submodule(name)
            assert isinstance(layer, nn.Linear | nn.Conv2d)
            flat = integers.flatten(1)
            spread = scale[:, None] if block is None else scale.repeat_interleave(block, dim=1)
            values = flat * spread[:, : flat.shape[1]]
            torch.testing.assert_close(matrix_of(layer)[0], values, rtol=1e-6, atol=0)
            assert int(flat.abs().max()) <= 2 ** (bits - 1) - 1
        with torch.no_grad():
            x = batches[0][0]
            seen[method] = float((model(x) - dense(x)).square().mean())
    assert seen["eora"] < 0.8 * seen["none"]


def test_what_factors_held_before_is_computed_still() -> None:
    """Factors that made good a pruning are part of what a rounded layer should put out."""
    layer = linear(True, 3)
    first = problem_of(layer, inputs())
    kept = torch.ones_like(first.weight, dtype=torch.bool)
    kept[..., ::2] = False
    pruned = replace(rounded(first, 8), weight=first.weight * kept, kept=kept)
    solved, _ = compensated(layer, first, pruned, "eora")
    with torch.no_grad():
        layer.weight.copy_(solved.weight[0])
        assert solved.bias is not None
        layer.bias.copy_(solved.bias[0])
        x = inputs(1)
        before = layer(x)
        second = problem_of(layer, inputs())
        found, _ = compensated_on_grids(
            "x", layer, second, rounded(second, 8), "eora", partial(on_grid, bits=8)
        )
        layer.weight.copy_(found.weight[0])
        assert found.bias is not None
        layer.bias.copy_(found.bias[0])
        after = layer(x)
    assert torch.equal(layer.weight == 0, ~kept[0])
    assert float((after - before).norm() / before.norm()) < 0.02
