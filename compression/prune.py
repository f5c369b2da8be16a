"""Task-aware layer-wise pruning: the sweep over every layer of the body, block by block."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from compression.compensate import compensated
from compression.hessian import HessianAccumulator
from compression.keeping import Keeper, walk_on
from compression.layers import Layer, as_layer, mask_as_weight, matrix_of, store
from compression.masks import MaskRule, NofM, Unstructured, parse_pattern
from compression.problem import LayerProblem
from compression.pruners import METHODS
from compression.sequential import Batch, Progress, SegmentLike


def zeros_of(layer: nn.Module) -> Tensor:
    """True where the layer's weight is exactly zero; the weight's shape."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach() == 0


def masks_of(model: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    """Kept weights (True) of the named layers, read from their zeros."""
    return {name: ~zeros_of(model.get_submodule(name)) for name in names}


def prune_layers(
    model: nn.Module,
    segments: Sequence[SegmentLike],
    calibration: Callable[[], Iterable[Batch]],
    zeros: Mapping[str, int],
    *,
    method: str = "sweep",
    compensation: str = "none",
    pattern: str = "unstructured",
    rel_damp: float = 0.01,
    rows_per_column: float | None = None,
    progress: Progress | None = None,
    keeper: Keeper | None = None,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Prune in place to the asked zeros a layer; weights that are zero already stay zero.

    Args:
        zeros: zeros a layer; a layer asked for 0 is left as it is. With an N:M ``pattern`` the
            pattern decides and a positive entry only says that the layer takes part.
        method: one of :data:`compression.pruners.METHODS`.
        compensation: of :data:`compression.compensations.METHODS`, for layers that carry factors.
        keeper: where finished segments are kept; None keeps nothing.

    Returns:
        kept weights a layer (bool, the weight's shape) and the loss 1/2 tr(dW H dW^T) a layer.
    """
    ratio, solve = parse_pattern(pattern), METHODS.load(method)
    wanted = [name for name, count in zeros.items() if count > 0]
    kept: dict[str, Tensor] = {}
    losses: dict[str, float] = {}

    def visit(name: str, layer: Layer, accumulator: HessianAccumulator) -> None:
        problem = LayerProblem.of(name, layer, accumulator, rel_damp)
        held = problem.weight == 0
        rule: MaskRule
        if ratio is None:
            rule = Unstructured(max(zeros[name], int(held.sum())), held)
        else:
            rule = NofM(*ratio, held)
        solved, loss = compensated(layer, problem, solve(problem, rule), compensation)
        store(layer, solved.weight, solved.bias)
        kept[name] = mask_as_weight(layer, solved.kept)
        losses[name] = loss

    walk_on(
        model,
        segments,
        calibration,
        wanted,
        visit,
        {"kept": kept, "losses": losses},
        rows_per_column=rows_per_column,
        progress=progress,
        keeper=keeper,
    )
    # those of an earlier attempt come back on the CPU
    kept = {
        name: mask.to(matrix_of(as_layer(name, model.get_submodule(name))).device)
        for name, mask in kept.items()
    }
    return kept, losses


@torch.no_grad()
def hold(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Set the removed weights to zero again (after an optimiser's step)."""
    for name, mask in kept.items():
        weight = model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        weight.mul_(mask)
