"""The zeros of each layer for one rung: the asked method run once, its answer kept."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compression.allocation import uniform
from compression.allocators import METHODS
from compression.keeping import Keeper, part_of
from compression.request import AllocationSettings, Request
from compression.sequential import Batch, Progress, SegmentLike


@dataclass(frozen=True)
class Shared:
    """Zeros a layer, all layers named, and what the method tells of its choice."""

    zeros: dict[str, int]
    facts: dict[str, float]


def share_zeros(
    model: nn.Module,
    teacher: nn.Module,
    segments: Sequence[SegmentLike],
    calibration: Callable[[], Iterable[Batch]],
    *,
    sizes: Mapping[str, int],
    dense: Collection[str],
    sparsity: float,
    settings: AllocationSettings,
    solver: str,
    rel_damp: float,
    rows_per_column: float | None,
    device: torch.device,
    autocast_bf16: bool,
    folder: Path | None = None,
    progress: Progress | None = None,
    keeper: Keeper | None = None,
) -> Shared:
    """Choose how many zeros each layer takes; ``model`` is as it was afterwards.

    Args:
        sizes: weights a layer, all of them counted. dense: those that take no zeros.
        solver: of :data:`compression.pruners.METHODS`.
        folder: for solved levels, emptied at the end; the same one where an earlier attempt is
            resumed. None: a temporary one.
        keeper: where the choice, and what is finished on the way to it, are kept.

    Raises:
        CompressionError: as :func:`compression.allocation.uniform`.
    """
    if settings.method == "uniform":  # nothing to look at, nothing to keep
        return Shared(uniform(sizes, sparsity, dense=dense), {})
    uniform(sizes, sparsity, dense=dense)  # said before anything is computed: is there room?
    chosen = part_of(keeper, "chosen")
    found = None if chosen is None else chosen.load()
    scratch = Path(tempfile.mkdtemp(prefix="winnow-")) if folder is None else folder
    if found is not None:
        shutil.rmtree(scratch, ignore_errors=True)
        return Shared(**found)
    scratch.mkdir(parents=True, exist_ok=True)
    request = Request(
        model=model,
        teacher=teacher,
        segments=segments,
        calibration=calibration,
        sizes=sizes,
        dense=dense,
        sparsity=sparsity,
        settings=settings,
        solver=solver,
        rel_damp=rel_damp,
        rows_per_column=rows_per_column,
        device=device,
        autocast_bf16=autocast_bf16,
        folder=scratch,
        progress=progress,
        keeper=keeper,
    )
    try:
        zeros: dict[str, int] = METHODS.load(settings.method)(request)
    except BaseException:
        if folder is None:  # a kept one is what the next attempt goes on with
            shutil.rmtree(scratch, ignore_errors=True)
        raise
    shared = Shared(zeros, request.facts)
    if chosen is not None:
        chosen.save(vars(shared))
    shutil.rmtree(scratch, ignore_errors=True)
    return shared


def told(shared: Shared, sizes: Mapping[str, int], method: str) -> dict[str, Any]:
    """What a stage tells of it: the method, its facts, the share of zeros a layer."""
    layers = {name: round(zeros / sizes[name], 4) for name, zeros in shared.zeros.items()}
    return {"method": method, **shared.facts, "layers": layers}
