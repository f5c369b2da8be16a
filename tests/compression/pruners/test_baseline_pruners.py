"""Oracles of magnitude, Wanda and exact OBS: brute force, exact counts, what is held stays."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from compression.errors import CompressionError
from compression.hessian import layer_loss
from compression.masks import Fixed, NofM, Unstructured
from compression.obs import exact_obs
from compression.problem import LayerProblem
from compression.pruners import METHODS, prune_several

F64 = torch.float64
SHAPES = [(1, 6, 12), (3, 4, 8)]  # plain, and a grouped convolution's


def problem_of(generator, shape=(1, 6, 12), bias=True, samples=80) -> LayerProblem:
    groups, rows, columns = shape
    inputs = columns + bias
    x = torch.randn(groups, samples, columns, generator=generator, dtype=F64)
    x = x @ torch.randn(groups, columns, columns, generator=generator, dtype=F64) + 0.5
    if bias:
        x = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
    assert x.shape[-1] == inputs
    weight = torch.randn(shape, generator=generator, dtype=F64)
    shift = torch.randn(groups, rows, generator=generator, dtype=F64) if bias else None
    return LayerProblem("layer", weight, shift, 2 / samples * x.mT @ x, samples, 0.01)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("zeros", [0, 1, 30, 71, 72])
def test_counts_are_exact(generator, name, shape, zeros) -> None:
    problem = problem_of(generator, shape)
    zeros = round(zeros / 72 * problem.weight.numel())
    solved = METHODS.load(name)(problem, Unstructured(zeros))
    assert int((~solved.kept).sum()) == zeros
    assert bool((solved.weight[~solved.kept] == 0).all())
    if zeros == 0:
        assert torch.allclose(solved.weight, problem.weight)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_zero_stays_zero_and_counts(generator, name, shape) -> None:
    problem = problem_of(generator, shape)
    held = torch.rand(shape, generator=generator) < 0.3
    held[0, 0] = True  # a row that has lost more than its share
    held[0, 1] = False
    sparse = LayerProblem(
        "layer",
        problem.weight.masked_fill(held, 0.0),
        problem.bias,
        problem.hessian,
        problem.samples,
        problem.rel_damp,
    )
    zeros = int(held.sum()) + 11
    solved = METHODS.load(name)(sparse, Unstructured(zeros, held))
    assert int((~solved.kept).sum()) == zeros
    assert not bool((solved.kept & held).any())
    same = METHODS.load(name)(sparse, Unstructured(int(held.sum()), held))
    assert torch.equal(~same.kept, held)
    with pytest.raises(CompressionError, match=f"{int(held.sum())} of them held"):
        METHODS.load(name)(sparse, Unstructured(int(held.sum()) - 1, held))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 3), (4, 8)])
def test_patterns(generator, name, n, m) -> None:
    problem = problem_of(generator, (1, 5, 26))
    held = torch.zeros(1, 5, 26, dtype=torch.bool)
    held[0, 0, :5] = True
    weight = problem.weight.masked_fill(held, 0.0)
    problem = LayerProblem("layer", weight, problem.bias, problem.hessian, 80, 0.01)
    solved = METHODS.load(name)(problem, NofM(n, m, held))
    assert not bool((solved.kept & held).any())
    whole = 26 // m * m
    groups = solved.kept[..., :whole].unflatten(-1, (-1, m)).sum(-1)
    most = (~held)[..., :whole].unflatten(-1, (-1, m)).sum(-1)
    assert torch.equal(groups, most.clamp(max=n))
    assert torch.equal(solved.kept[..., whole:], ~held[..., whole:])
    assert bool((solved.weight[~solved.kept] == 0).all())


def test_magnitude_takes_the_smallest_and_changes_nothing_else(generator) -> None:
    problem = problem_of(generator)
    solved = METHODS.load("magnitude")(problem, Unstructured(40))
    assert problem.weight[~solved.kept].abs().max() < problem.weight[solved.kept].abs().min()
    assert torch.equal(solved.weight[solved.kept], problem.weight[solved.kept])
    assert torch.equal(solved.bias, problem.bias)


def test_wanda_is_the_score_of_the_inputs_row_by_row(generator) -> None:
    x = torch.randn(50, 12, generator=generator, dtype=F64) * torch.logspace(-1, 1, 12, dtype=F64)
    weight = torch.randn(1, 6, 12, generator=generator, dtype=F64)
    problem = LayerProblem("layer", weight, None, (2 / 50 * x.T @ x)[None], 50, 0.01)
    score = weight[0].abs() * x.norm(dim=0)
    solved = METHODS.load("wanda")(problem, Unstructured(6 * 5))
    expected = torch.ones(6, 12, dtype=torch.bool)
    for row in range(6):
        expected[row, score[row].argsort()[:5]] = False
    assert torch.equal(solved.kept[0], expected)
    # two more than five a row: the two rows whose sixth weight scores lowest
    more = METHODS.load("wanda")(problem, Unstructured(6 * 5 + 2)).kept[0]
    sixth = score.sort(dim=1).values[:, 5]
    assert torch.equal((~more).sum(1) == 6, sixth <= sixth.sort().values[1])


def test_wanda_shares_what_is_left_among_the_rows_that_have_lost_least(generator) -> None:
    problem = problem_of(generator, (1, 4, 10))
    held = torch.zeros(1, 4, 10, dtype=torch.bool)
    held[0, 0, :9] = True
    held[0, 1, :2] = True
    solved = METHODS.load("wanda")(problem, Unstructured(9 + 4 + 4 + 4, held))
    assert (~solved.kept[0]).sum(1).tolist() == [9, 4, 4, 4]


def least_loss(problem: LayerProblem, count: int) -> float:
    """The least loss of any mask of so many zeros in one row, by trying them all."""
    damped, original = problem.factor.damped[0], problem.original[0]
    columns, best = problem.weight.shape[-1], torch.inf
    for gone in itertools.combinations(range(columns), count):
        free = [at for at in range(len(damped)) if at not in gone]
        pull = damped[free][:, list(gone)] @ original[0, list(gone)]
        change = -original[0].clone()
        change[free] = torch.linalg.solve(damped[free][:, free], pull)
        best = min(best, float(0.5 * change @ damped @ change))
    return best


@pytest.mark.parametrize("bias", [False, True])
def test_obs_of_one_weight_is_the_best_there_is(generator, bias) -> None:
    problem = problem_of(generator, (1, 1, 7), bias)
    solved = METHODS.load("obs")(problem, Unstructured(1))
    assert problem.loss(solved) == pytest.approx(least_loss(problem, 1), rel=1e-9)


def test_obs_is_close_to_the_best_of_all_masks(generator) -> None:
    greedy, best = 0.0, 0.0
    for _ in range(12):
        problem = problem_of(generator, (1, 1, 8))
        greedy += problem.loss(METHODS.load("obs")(problem, Unstructured(4)))
        best += least_loss(problem, 4)
    assert best <= greedy * (1 + 1e-9)
    assert greedy < 1.5 * best


def test_obs_is_the_oracle_where_there_is_neither_group_nor_bias(generator) -> None:
    problem = problem_of(generator, (1, 6, 12), bias=False)
    solved = METHODS.load("obs")(problem, Unstructured(40))
    weight, kept, loss = exact_obs(problem.weight[0], problem.factor.damped[0], 40)
    assert torch.equal(solved.kept[0], kept)
    assert torch.allclose(solved.weight[0], weight)
    assert problem.loss(solved) == pytest.approx(loss)


def test_obs_of_groups_shares_one_budget(generator) -> None:
    """Two layers that do not touch each other are pruned as their block-diagonal whole is."""
    problem = problem_of(generator, (2, 3, 6), bias=False)
    whole = LayerProblem(
        "layer",
        torch.block_diag(*problem.weight)[None],
        None,
        torch.block_diag(*problem.factor.damped)[None],
        80,
        1e-12,
    )
    held = torch.block_diag(*torch.ones(2, 3, 6))[None] == 0
    solved = METHODS.load("obs")(problem, Unstructured(20))
    other = METHODS.load("obs")(whole, Unstructured(20 + int(held.sum()), held))
    assert torch.equal(torch.block_diag(*solved.kept.double())[None] == 1, other.kept)
    assert problem.loss(solved) == pytest.approx(whole.loss(other))


def test_the_order_of_losses(generator) -> None:
    """Exact beats the sweep, which beats what compensates nothing and knows the inputs."""
    losses = {name: 0.0 for name in METHODS}
    for _ in range(5):
        problem = problem_of(generator, (1, 10, 20), samples=200)
        for name in losses:
            losses[name] += problem.loss(METHODS.load(name)(problem, Unstructured(120)))
    assert losses["obs"] < losses["sweep"] < losses["wanda"]
    assert losses["sweep"] < losses["magnitude"]


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_is_the_quadratic_form_and_the_same_twice(generator, name) -> None:
    problem = problem_of(generator, (2, 4, 8))
    one, two = (METHODS.load(name)(problem, Unstructured(30)) for _ in range(2))
    assert torch.equal(one.weight, two.weight)
    change = torch.cat([one.weight, one.bias[..., None]], -1) - problem.original
    direct = float(layer_loss(change, problem.factor.damped))
    assert problem.loss(one) == pytest.approx(direct)


def test_too_large_a_layer_is_refused_by_name_and_size() -> None:
    weight = torch.zeros(1, 1, 1).expand(1, 512, 4608)
    hessian = torch.zeros(1, 1, 1).expand(1, 4608, 4608)
    problem = LayerProblem("layer4.0.conv2", weight, None, hessian, 1, 0.01)
    told = r"layer 'layer4.0.conv2': 512 x 4608 is too large for exact OBS; .*prune.method to sweep"
    with pytest.raises(CompressionError, match=told):
        METHODS.load("obs")(problem, Unstructured(1))


def test_obs_takes_no_mask_that_is_given(generator) -> None:
    problem = problem_of(generator)
    with pytest.raises(CompressionError, match="chooses its mask"):
        METHODS.load("obs")(problem, Fixed(problem.weight != 0))


@pytest.mark.parametrize(("beside", "at_once"), [(2**18, ()), (150, ()), (2**18, ("cpu",))])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_answers_together_are_those_one_after_the_other(
    generator, monkeypatch, name, shape, bias, beside, at_once
) -> None:
    problem = problem_of(generator, shape, bias=bias)
    held = torch.rand(shape, generator=generator) < 0.2
    problem = dataclasses.replace(problem, weight=problem.weight.masked_fill(held, 0.0))
    counts = [int(held.sum()), 30, 50, 71]
    monkeypatch.setattr("compression.pruners.sweep._BESIDE", {"cpu": beside})
    monkeypatch.setattr("compression.masks._AT_ONCE", set(at_once))
    together = list(prune_several(name, problem, [Unstructured(n, held) for n in counts]))
    assert len(together) == len(counts)
    for count, found in zip(counts, together, strict=True):
        alone = METHODS.load(name)(problem, Unstructured(count, held))
        assert torch.equal(found.kept, alone.kept)
        assert torch.allclose(found.weight, alone.weight, atol=1e-12)
        if bias:
            assert torch.allclose(found.bias, alone.bias, atol=1e-12)
