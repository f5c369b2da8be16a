"""INT8 weights solved by the same sweep, the zeros of a sparse model held."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import torch
from torch import Tensor, nn

from compression.grids import block_grid, row_grid
from compression.hessian import HessianAccumulator, factorise
from compression.layers import Layer, mask_as_weight, matrix_of, store
from compression.masks import Fixed
from compression.sequential import Batch, Progress, SegmentLike, walk
from compression.sweep import sweep


def quantize_weights(
    model: nn.Module,
    segments: Sequence[SegmentLike],
    calibration: Callable[[], Iterable[Batch]],
    layers: Collection[str],
    *,
    bits: int = 8,
    rel_damp: float = 0.01,
    rows_per_column: float | None = None,
    progress: Progress | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Round the named layers in place to a symmetric grid an output channel, errors compensated.

    The sweep's rounding rule is GPTQ's; zeros of the weight are a fixed mask, so they stay exact
    zeros in the integers; the bias takes up the mean shift.

    Returns:
        name -> (integers int8 of the weight's shape, scale float32 (rows,)); the layer's weight is
        then exactly integers * scale.
    """
    grids: dict[str, tuple[Tensor, Tensor]] = {}

    def visit(name: str, layer: Layer, accumulator: HessianAccumulator) -> None:
        assert accumulator.hessian is not None
        weight = matrix_of(layer)
        factor = factorise(
            accumulator.hessian, rel_damp=rel_damp, layer=name, samples=accumulator.samples
        )
        grid = row_grid(weight.to(factor.upper.dtype), bits=bits)
        bias = None
        if layer.bias is not None:
            bias = layer.bias.detach().reshape(weight.shape[:2])
        result = sweep(weight, factor, Fixed(weight != 0), grid=grid, bias=bias)
        integers = grid.integers(result.weight).to(torch.int8)
        scale = grid.scale.float()
        store(layer, integers * scale, result.bias)
        grids[name] = (mask_as_weight(layer, integers).cpu(), scale.reshape(-1).cpu())

    walk(
        model,
        segments,
        calibration,
        list(layers),
        visit,
        rows_per_column=rows_per_column,
        progress=progress,
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
    """
    tables: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding):
            continue
        width = module.weight.shape[1]
        size = min(block, width) if block else width
        integers, scale = block_grid(module.weight, bits=bits, block=size)
        values = integers.unflatten(1, (-1, size)).float() * scale[..., None]
        module.weight.copy_(values.flatten(1))
        tables[name] = (integers.cpu(), scale.cpu())
    return tables
