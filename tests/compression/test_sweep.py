"""Oracles of the column sweep: exact counts, the loss identity, the least-squares bound."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compression.errors import CholeskyError, CompressionError
from compression.grids import row_grid
from compression.hessian import HessianAccumulator, damp, factorise, layer_loss
from compression.layers import columns_of, matrix_of
from compression.masks import Fixed, NofM, Unstructured, parse_pattern
from compression.obs import exact_obs, masked_least_squares
from compression.refine import refine
from compression.sweep import sweep

F64 = torch.float64


def problem(generator, rows=12, columns=40, samples=200, groups=1):
    """A correlated layer problem in float64: weight (G,R,C), Hessian (G,C,C)."""
    mix = torch.randn(groups, columns, columns, generator=generator, dtype=F64)
    x = torch.randn(groups, samples, columns, generator=generator, dtype=F64) @ mix
    weight = torch.randn(groups, rows, columns, generator=generator, dtype=F64)
    return weight, 2 / samples * x.mT @ x


def factor_of(hessian, rel_damp=0.01):
    return factorise(hessian, rel_damp=rel_damp, layer="layer", samples=1)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("block", [7, 16, 128])
def test_reported_loss_is_the_quadratic_form(generator, groups, block):
    weight, hessian = problem(generator, groups=groups)
    factor = factor_of(hessian)
    swept = sweep(weight, factor, Unstructured(weight.numel() // 2), block_columns=block)
    direct = float(layer_loss(swept.weight - weight, factor.damped))
    assert swept.loss == pytest.approx(direct, rel=1e-9)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_a_block_at_once_is_a_block_column_by_column(generator, monkeypatch, groups, bias) -> None:
    weight, hessian = problem(generator, columns=41, groups=groups)
    shift = weight[..., -1] if bias else None
    part = weight[..., :-1] if bias else weight
    factor = factor_of(hessian)
    found = []
    for devices in (set(), {"cpu"}):
        monkeypatch.setattr("compression.sweep._AT_ONCE", devices)
        rule = Unstructured(part.numel() // 2)
        found.append(sweep(part, factor, rule, bias=shift, block_columns=16))
    column, block = found
    assert torch.equal(column.kept, block.kept)
    assert torch.allclose(column.weight, block.weight, atol=1e-12)
    assert column.loss == pytest.approx(block.loss, rel=1e-12)
    if bias:
        assert torch.allclose(column.bias, block.bias, atol=1e-12)


def test_factor_inverts_the_damped_hessian(generator):
    _, hessian = problem(generator, groups=2)
    factor = factor_of(hessian)
    identity = factor.upper.mT @ factor.upper @ factor.damped
    assert torch.allclose(identity, torch.eye(40, dtype=F64).expand_as(identity), atol=1e-8)
    assert torch.equal(factor.upper, factor.upper.triu())


@pytest.mark.parametrize("columns", [129, 300, 1100])  # beyond what is factorised in one piece
def test_the_factor_by_halves_is_the_one_from_lapack(generator, columns):
    _, hessian = problem(generator, columns=columns, samples=columns + 40, groups=2)
    factor = factor_of(hessian)
    inverse = torch.linalg.inv(factor.damped)
    expected = torch.linalg.cholesky(inverse, upper=True)
    assert torch.allclose(factor.upper, expected, rtol=1e-6, atol=1e-9 * float(expected.max()))
    assert torch.equal(factor.upper, factor.upper.triu())


def test_a_hessian_whose_first_half_alone_is_wrong_is_told():
    hessian = torch.eye(400, dtype=F64)[None].repeat(2, 1, 1)
    hessian[1, 3, 3] = -1.0
    with pytest.raises(CholeskyError):
        factor_of(hessian)


def column_by_column(weight, upper, keep_of, step, grid=None):
    """The recursion as the papers write it, every column to the right updated at once."""
    W, kept = weight.clone(), torch.ones_like(weight, dtype=torch.bool)
    for c in range(W.shape[-1]):
        if c % step == 0:
            kept[..., c : c + step] = keep_of(W, c)
        q = W[..., c] if grid is None else grid.column(W[..., c], c)
        q = q * kept[..., c]
        error = (W[..., c] - q) / upper[:, c, c, None]
        W[..., c + 1 :] -= error[..., None] * upper[:, None, c, c + 1 :]
        W[..., c] = q
    return W


@pytest.mark.parametrize("panel", [1, 8, 24, 1000])
@pytest.mark.parametrize("rounded", [False, True])
def test_blocks_and_panels_are_the_plain_recursion(generator, panel, rounded):
    weight, hessian = problem(generator, columns=100, groups=2)
    factor = factor_of(hessian)
    rule = NofM(2, 4)
    rule.prepare(weight, weight)
    pivots = factor.upper.diagonal(dim1=-2, dim2=-1)[:, None]

    def keep_of(W, c):
        stop = min(c + 8, 100)
        return rule.keep(c, stop, (W[..., c:stop] / pivots[..., c:stop]).square())

    grid = row_grid(weight, bits=4) if rounded else None
    swept = sweep(weight, factor, NofM(2, 4), grid=grid, block_columns=8, panel_columns=panel)
    expected = column_by_column(weight, factor.upper, keep_of, 8, grid)
    assert torch.allclose(swept.weight, expected, atol=1e-9)
    assert torch.equal(swept.kept, (expected != 0) if not rounded else swept.kept)


@pytest.mark.parametrize("zeros", [0, 1, 97, 240, 479, 480])
def test_counts_are_exact(generator, zeros):
    weight, hessian = problem(generator)
    swept = sweep(weight, factor_of(hessian), Unstructured(zeros), block_columns=16)
    assert int((~swept.kept).sum()) == zeros
    assert int((swept.weight == 0).sum()) == zeros
    if zeros == 0:
        assert torch.equal(swept.weight, weight)


@pytest.mark.parametrize("n,m", [(2, 4), (1, 4), (4, 8), (1, 3)])
def test_n_of_m_keeps_n_in_every_group(generator, n, m):
    weight, hessian = problem(generator, columns=48)
    swept = sweep(weight, factor_of(hessian), NofM(n, m), block_columns=20)
    assert bool((swept.kept.unflatten(-1, (-1, m)).sum(-1) == n).all())


def test_n_of_m_leaves_a_short_tail_dense(generator):
    weight, hessian = problem(generator, columns=10)
    swept = sweep(weight, factor_of(hessian), NofM(2, 4))
    assert bool(swept.kept[..., 8:].all())


def test_never_below_the_least_squares_optimum_and_close_to_it(generator):
    weight, hessian = problem(generator)
    factor = factor_of(hessian)
    swept = sweep(weight, factor, Unstructured(240))
    best = masked_least_squares(weight[0], factor.damped[0], swept.kept[0])
    optimum = float(layer_loss(best[None] - weight, factor.damped))
    plain = float(layer_loss(weight * swept.kept - weight, factor.damped))
    assert optimum <= swept.loss * (1 + 1e-9)
    assert swept.loss < plain
    largest = weight.abs() >= weight.abs().flatten().kthvalue(241).values
    magnitude = float(layer_loss(weight * largest - weight, factor.damped))
    narrow = sweep(weight, factor, Unstructured(240), block_columns=8)
    assert narrow.loss < magnitude


@pytest.mark.parametrize("groups", [1, 3])
def test_refine_reaches_the_least_squares_optimum(generator, groups):
    weight, hessian = problem(generator, groups=groups)
    factor = factor_of(hessian)
    swept = sweep(weight, factor, Unstructured(weight.numel() // 2))
    solved = refine(
        swept.weight, weight, factor.damped, swept.kept, iterations=500, rel_tolerance=1e-10
    )
    assert bool((solved[~swept.kept] == 0).all())
    for g in range(groups):
        best = masked_least_squares(weight[g], factor.damped[g], swept.kept[g])
        assert torch.allclose(solved[g], best, atol=1e-6)
    few = refine(swept.weight, weight, factor.damped, swept.kept, iterations=5)
    assert float(layer_loss(few - weight, factor.damped)) < swept.loss


def test_matches_exact_obs_where_nothing_is_correlated(generator):
    weight = torch.randn(1, 6, 20, generator=generator, dtype=F64)
    hessian = torch.diag_embed(torch.rand(1, 20, generator=generator, dtype=F64) + 0.1)
    factor = factor_of(hessian, rel_damp=0.0)
    swept = sweep(weight, factor, Unstructured(60))
    _, kept, loss = exact_obs(weight[0], factor.damped[0], 60)
    assert torch.equal(swept.kept[0], kept)
    assert swept.loss == pytest.approx(loss, rel=1e-12)


def test_exact_obs_first_step_is_brute_force(generator):
    weight, hessian = problem(generator, rows=1, columns=6)
    damped, _ = damp(hessian, 0.01)
    _, kept, loss = exact_obs(weight[0], damped[0], 1)
    losses = []
    for p in range(6):
        mask = torch.ones(1, 6, dtype=torch.bool)
        mask[0, p] = False
        solved = masked_least_squares(weight[0], damped[0], mask)
        losses.append(float(layer_loss(solved[None] - weight, damped)))
    assert loss == pytest.approx(min(losses), rel=1e-9)
    assert int((~kept).nonzero()[0, 1]) == losses.index(min(losses))


def _by_heap(weight: torch.Tensor, damped: torch.Tensor, zeros: int) -> torch.Tensor:
    """Algorithm 2 of OBC word by word: the row whose next removal is cheapest loses it."""

    def step(row: int) -> tuple[float, int]:
        inverse = torch.linalg.inv(damped[live[row]][:, live[row]])
        score = weights[row][live[row]].square() / inverse.diagonal()
        at = int(score.argmin())
        return float(score[at]), at

    rows, columns = weight.shape
    live = [list(range(columns)) for _ in range(rows)]
    weights = [row.clone() for row in weight]
    kept = torch.ones(rows, columns, dtype=torch.bool)
    heap = [(*step(row), row) for row in range(rows)]
    for _ in range(zeros):
        _, at, row = heap.pop(heap.index(min(heap)))
        gone = live[row][at]
        inverse = torch.linalg.inv(damped[live[row]][:, live[row]])
        pull = weights[row][gone] / inverse[at, at]
        weights[row][live[row]] -= pull * inverse[:, at]
        kept[row, gone] = False
        live[row].remove(gone)
        if live[row]:
            heap.append((*step(row), row))
    return kept


def test_exact_obs_takes_what_a_heap_of_rows_takes(generator):
    for _ in range(12):
        x = torch.randn(24, 8, generator=generator, dtype=torch.float64)
        weight = torch.randn(3, 8, generator=generator, dtype=torch.float64)
        damped = x.T @ x / 24 + 0.01 * torch.eye(8, dtype=torch.float64)
        for zeros in range(1, 24):
            _, kept, _ = exact_obs(weight, damped, zeros)
            assert torch.equal(kept, _by_heap(weight, damped, zeros))


def test_exact_obs_beats_the_sweep_on_a_small_layer(generator):
    weight, hessian = problem(generator)
    factor = factor_of(hessian)
    swept = sweep(weight, factor, Unstructured(240))
    _, kept, loss = exact_obs(weight[0], factor.damped[0], 240)
    assert int((~kept).sum()) == 240
    assert loss <= swept.loss


def test_held_zeros_stay_and_count(generator):
    weight, hessian = problem(generator)
    factor = factor_of(hessian)
    first = sweep(weight, factor, Unstructured(200))
    second = sweep(first.weight, factor, Unstructured(300, ~first.kept))
    assert int((~second.kept).sum()) == 300
    assert not bool((second.kept & ~first.kept).any())
    with pytest.raises(CompressionError, match="200 of them held"):
        sweep(first.weight, factor, Unstructured(100, ~first.kept))


def test_rounding_lands_on_the_grid_and_beats_nearest(generator):
    weight, hessian = problem(generator)
    factor = factor_of(hessian)
    grid = row_grid(weight, bits=4)
    kept = torch.rand(weight.shape, generator=generator) > 0.5
    masked = weight * kept
    swept = sweep(masked, factor, Fixed(kept), grid=grid)
    assert torch.equal(swept.weight, grid.nearest(swept.weight))
    assert bool((swept.weight[~kept] == 0).all())
    nearest = float(layer_loss(grid.nearest(masked) - masked, factor.damped))
    assert swept.loss < nearest


def test_bias_column_takes_up_the_mean_shift(generator):
    layer = nn.Linear(30, 8, dtype=F64)
    x = torch.randn(400, 30, generator=generator, dtype=F64) + 3.0
    accumulator = HessianAccumulator(layer)
    accumulator.add(x)
    factor = factor_of(accumulator.hessian, rel_damp=1e-6)
    bias = layer.bias.detach()[None]
    swept = sweep(matrix_of(layer), factor, Unstructured(120), bias=bias)
    before = layer(x)
    after = x @ swept.weight[0].T + swept.bias[0]
    shift = (after - before).mean(0).abs().max()
    assert shift < 1e-3 * before.std()


def test_dead_inputs_lose_their_weights_for_free(generator):
    layer = nn.Linear(10, 4, bias=False, dtype=F64)
    x = torch.randn(50, 10, generator=generator, dtype=F64)
    x[:, 3] = 0
    accumulator = HessianAccumulator(layer)
    accumulator.add(x)
    swept = sweep(matrix_of(layer), factor_of(accumulator.hessian), Unstructured(4))
    assert bool((swept.weight[..., 3] == 0).all())
    assert swept.loss == 0.0


@pytest.mark.parametrize("split", [1, 4])
def test_hessian_streams(generator, split):
    layer = nn.Linear(7, 3, bias=False, dtype=F64)
    x = torch.randn(64, 7, generator=generator, dtype=F64)
    accumulator = HessianAccumulator(layer)
    for part in x.split(64 // split):
        accumulator.add(part)
    assert accumulator.samples == 64
    assert torch.allclose(accumulator.hessian[0], 2 / 64 * x.T @ x)


def test_thinning_sees_every_part_of_an_image(generator):
    """A stride of whole image rows would only ever see one column of pixels."""
    conv = nn.Conv2d(1, 4, 3, padding=1, bias=False, dtype=F64)
    x = torch.randn(4, 1, 64, 64, generator=generator, dtype=F64)
    whole, thinned = HessianAccumulator(conv), HessianAccumulator(conv, max_rows=256)
    whole.add(x)
    thinned.add(x)
    assert thinned.samples == 256
    ratio = thinned.hessian.diagonal(dim1=1, dim2=2) / whole.hessian.diagonal(dim1=1, dim2=2)
    assert bool(((ratio > 0.7) & (ratio < 1.4)).all())


CONVS = [
    nn.Conv2d(6, 8, 1, stride=2),
    nn.Conv2d(6, 8, 3, padding=1),
    nn.Conv2d(6, 9, 3, stride=2, groups=3, bias=False),
    nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6),
    nn.Conv2d(6, 4, (3, 1), padding="same"),
    nn.Conv2d(6, 12, 1, groups=2),
]


@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_columns_times_matrix_is_the_convolution(generator, conv):
    conv = conv.double()
    x = torch.randn(2, 6, 9, 7, generator=generator, dtype=F64)
    y = conv(x)
    product = columns_of(conv, x) @ matrix_of(conv).mT  # (G, B*L, R)
    ours = product.permute(0, 2, 1).reshape(y.shape[1], 2, *y.shape[2:]).transpose(0, 1)
    if conv.bias is not None:
        ours = ours + conv.bias[:, None, None]
    assert torch.allclose(ours, y)


def test_failed_cholesky_names_the_layer():
    hessian = -torch.eye(4, dtype=F64)[None]
    with pytest.raises(CholeskyError, match=r"layer 'blocks\.0\.fc'.*7 samples.*rel_damp=0\.01"):
        factorise(hessian, rel_damp=0.01, layer="blocks.0.fc", samples=7)


def test_sweep_is_bitwise_deterministic(generator):
    weight, hessian = problem(generator)
    factor = factor_of(hessian)
    one, two = (sweep(weight, factor, Unstructured(240)) for _ in range(2))
    assert torch.equal(one.weight, two.weight)


@pytest.mark.parametrize("pattern", ["5:4", "0:4", "4:4", "half", "2-4", ""])
def test_bad_patterns(pattern):
    with pytest.raises(CompressionError, match="pattern"):
        parse_pattern(pattern)
