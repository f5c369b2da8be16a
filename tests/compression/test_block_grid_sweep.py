"""Oracles of 4-bit rounding with a scale a block of columns, solved by the one sweep."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compression.errors import CompressionError
from compression.grids import BlockwiseGrid, fitted_grid, row_grid
from compression.hessian import factorise, layer_loss
from compression.masks import Fixed
from compression.quantize import quantize_weights
from compression.sweep import sweep
from tests.compression.shapes import Piece

F64 = torch.float64
BLOCK = 16


def problem(generator, rows=12, columns=72, samples=300):
    """A correlated layer problem whose last block of 16 columns is half a block."""
    mix = torch.randn(1, columns, columns, generator=generator, dtype=F64)
    x = torch.randn(1, samples, columns, generator=generator, dtype=F64) @ mix
    weight = torch.randn(1, rows, columns, generator=generator, dtype=F64)
    weight *= torch.logspace(1, -1, columns, dtype=F64)  # columns of very different size
    return weight, factorise(2 / samples * x.mT @ x, rel_damp=0.01, layer="layer", samples=1)


@pytest.mark.parametrize("block_columns", [16, 32, 40])
def test_it_lands_on_the_grid_and_the_loss_is_the_quadratic_form(generator, block_columns):
    weight, factor = problem(generator)
    grid = BlockwiseGrid(weight, bits=4, block=BLOCK)
    swept = sweep(weight, factor, Fixed(weight != 0), grid=grid, block_columns=block_columns)
    assert grid.scale.shape == (1, 12, 5)
    integers = grid.integers(swept.weight)
    assert torch.equal(integers * grid.spread(72), swept.weight)
    assert int(integers.abs().max()) <= 7
    assert swept.loss == pytest.approx(
        float(layer_loss(swept.weight - weight, factor.damped)), rel=1e-9
    )


def test_it_beats_rounding_to_nearest_and_one_scale_a_row(generator):
    weight, factor = problem(generator)
    grid = BlockwiseGrid(weight, bits=4, block=BLOCK)
    swept = sweep(weight, factor, Fixed(weight != 0), grid=grid)
    nearest = BlockwiseGrid(weight, bits=4, block=BLOCK)
    nearest.fit(0, weight, torch.ones(1, 1, 72, dtype=F64))
    plain = float(layer_loss(nearest.nearest(weight) - weight, factor.damped))
    a_row = sweep(weight, factor, Fixed(weight != 0), grid=row_grid(weight, bits=4)).loss
    assert swept.loss < 0.8 * plain
    assert swept.loss < 0.8 * a_row


def test_without_correlation_it_is_each_block_rounded_alone(generator):
    """With a diagonal Hessian nothing is compensated: every block is `fitted_grid` of its own."""
    weight = torch.randn(1, 6, 72, generator=generator, dtype=F64)
    diagonal = torch.rand(1, 72, generator=generator, dtype=F64) + 0.1
    factor = factorise(torch.diag_embed(diagonal), rel_damp=0.0, layer="layer", samples=1)
    grid = BlockwiseGrid(weight, bits=4, block=BLOCK)
    swept = sweep(weight, factor, Fixed(weight != 0), grid=grid, block_columns=48)
    for index, start in enumerate(range(0, 72, BLOCK)):
        part = slice(start, start + BLOCK)
        alone = fitted_grid(weight[..., part], diagonal[:, None, part], limit=7)
        assert torch.allclose(grid.scale[..., index], alone.scale.squeeze(-1))
        assert torch.allclose(swept.weight[..., part], alone.nearest(weight[..., part]))


def test_the_clipping_minimises_the_weighed_error(generator):
    weight = torch.randn(1, 1, 32, generator=generator, dtype=F64)
    weight[..., 0] = 6.0  # an outlier
    heavy = torch.ones(1, 1, 32, dtype=F64)
    heavy[..., 0] = 1e6
    assert fitted_grid(weight, heavy, limit=7).scale.item() == pytest.approx(6 / 7, rel=0.15)
    light = torch.ones(1, 1, 32, dtype=F64)
    light[..., 0] = 0.0
    assert fitted_grid(weight, light, limit=7).scale.item() == pytest.approx(0.6 * 6 / 7)


def test_masked_zeros_stay_zero(generator):
    weight, factor = problem(generator)
    kept = torch.rand(weight.shape, generator=generator) > 0.5
    grid = BlockwiseGrid(weight, bits=4, block=BLOCK)
    swept = sweep(weight * kept, factor, Fixed(kept), grid=grid)
    assert bool((grid.integers(swept.weight)[~kept] == 0).all())


def test_quantize_weights_with_blocks(generator):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 24), nn.GELU(), nn.Linear(24, 5))
    x = torch.randn(256, 40, generator=generator)
    before = net(x).detach()
    pieces = [Piece("0", net[0]), Piece("2", net[2])]
    grids = quantize_weights(net, pieces, lambda: [(x,)], ["0"], bits=4, block=BLOCK)
    integers, scale = grids["0"]
    assert integers.dtype == torch.int8 and integers.shape == (24, 40)
    assert scale.dtype == torch.float32 and scale.shape == (24, 3)
    spread = scale.repeat_interleave(BLOCK, dim=1)[:, :40]
    assert torch.equal(net[0].weight, integers * spread)
    shift = (net(x).detach() - before).mean(
        0
    )  # the bias takes up the mean shift of the layer's output
    assert float(shift.abs().max()) < 0.1 * float(before.std())


def test_a_convolution_has_no_blocks(generator):
    net = nn.Sequential(nn.Conv2d(3, 8, 3))
    images = torch.randn(4, 3, 8, 8, generator=generator)
    with pytest.raises(CompressionError, match=r"'0'.*Conv2d takes one a row"):
        quantize_weights(net, [Piece("0", net[0])], lambda: [(images,)], ["0"], bits=4, block=BLOCK)
