"""8-bit and 4-bit weights solved by the same sweep, the zeros of a sparse model held."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from compression.compensate import compensated_on_grids, factors_of
from compression.errors import CompressionError
from compression.grids import BlockwiseGrid, Grid, block_grid, row_grid
from compression.hessian import HessianAccumulator
from compression.keeping import Keeper, walk_on
from compression.layers import Layer, mask_as_weight, store
from compression.problem import LayerProblem, Solved
from compression.rounders import METHODS
from compression.sequential import Batch, Progress, SegmentLike


def quantize_weights(
    model: nn.Module,
    segments: Sequence[SegmentLike],
    calibration: Callable[[], Iterable[Batch]],
    layers: Collection[str],
    *,
    method: str = "gptq",
    compensation: str | None = None,
    bits: int | Mapping[str, int] = 8,
    block: int | None = None,
    rel_damp: float = 0.01,
    rows_per_column: float | None = None,
    progress: Progress | None = None,
    keeper: Keeper | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Round the named layers in place to a symmetric grid an output channel, errors compensated.

    The sweep's rounding rule is GPTQ's; zeros of the weight are a fixed mask, so they stay exact
    zeros in the integers; the bias takes up the mean shift.

    Args:
        method: one of :data:`compression.rounders.METHODS`.
        compensation: of :data:`compression.compensations.METHODS`: the factors of named layers that
            carry some are solved for what rounding took, and rounded with their layer, so that
            they are not to be named. None: factors are layers as any other.
        bits: 8, or 4 for weights that are stored so and computed with in float (Linear only); or
            of each layer.
        block: columns that share a scale; None for one scale a row. 4 bits need blocks (32).
        keeper: where finished segments are kept; None keeps nothing.

    Returns:
        name -> (integers int8 of the weight's shape, scale float32 (rows,), or
        (rows, ceil(columns / block)) with blocks); the layer's weight is then exactly integers
        times their scale.

    Raises:
        CompressionError: blocks asked of a convolution.
    """
    grids: dict[str, tuple[Tensor, Tensor]] = {}
    solve = METHODS.load(method)

    def on_grid(name: str, layer: Layer, problem: LayerProblem) -> Solved:
        """A problem's answer on its grid, of which integers and scale are noted."""
        weight, dtype = problem.weight, problem.hessian.dtype
        if block is not None and not isinstance(layer, nn.Linear):
            raise CompressionError(
                f"layer {name!r}: a scale for every {block} columns is for Linear layers; "
                f"{type(layer).__name__} takes one a row"
            )
        width = bits if isinstance(bits, int) else bits[name]
        grid: Grid | BlockwiseGrid
        if block is None:
            grid = row_grid(weight.to(dtype), bits=width)
        else:
            grid = BlockwiseGrid(weight.to(dtype), bits=width, block=block)
        result = solve(problem, weight != 0, grid)
        integers = grid.integers(result.weight).to(torch.int8)
        scale = grid.scale.float().squeeze(0) if block else grid.scale.float().reshape(-1)
        grids[name] = (mask_as_weight(layer, integers).cpu(), scale.cpu())
        return replace(result, weight=integers * grid.spread(weight.shape[-1]).float())

    def visit(name: str, layer: Layer, accumulator: HessianAccumulator) -> None:
        problem = LayerProblem.of(name, layer, accumulator, rel_damp)
        result = on_grid(name, layer, problem)
        if compensation is not None and factors_of(layer) is not None:
            result, _ = compensated_on_grids(
                name, layer, problem, result, compensation, lambda *of: on_grid(*of).weight
            )
        store(layer, result.weight, result.bias)

    walk_on(
        model,
        segments,
        calibration,
        list(layers),
        visit,
        {"grids": grids},
        rows_per_column=rows_per_column,
        progress=progress,
        keeper=keeper,
    )
    return grids


@torch.no_grad()
def quantize_embeddings(
    model: nn.Module, *, bits: int, block: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Round every ``nn.Embedding`` in place.

    ``block`` is lowered to the table's width where that is smaller; 0 takes the whole row.

    Returns:
        name -> (integers int8 (V, D), scales float32 (V, D/block)).

    Raises:
        CompressionError: a table's width is no multiple of the block.
    """
    tables: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding):
            continue
        width = module.weight.shape[1]
        size = min(block, width) if block else width
        if width % size:
            raise CompressionError(
                f"embedding {name!r}: {bits} bits have a scale for every {size} numbers, and "
                f"{width} is no multiple of that; set quantize.embeddings: int8"
            )
        integers, scale = block_grid(module.weight, bits=bits, block=size)
        values = integers.unflatten(1, (-1, size)).float() * scale[..., None]
        module.weight.copy_(values.flatten(1))
        tables[name] = (integers.cpu(), scale.cpu())
    return tables
