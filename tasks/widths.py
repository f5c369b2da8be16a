"""How many bits each layer of a weight-only model gets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn

from compression.keeping import part_of
from compression.sequential import Batch, Progress, SegmentLike
from compression.widths import WidthRequest, assign_widths
from exports.weightonly import WIDTHS
from tasks.config import Recipe
from tasks.partial import Partial, files_of


def choose_widths(
    recipe: Recipe,
    model: nn.Module,
    parts: Sequence[SegmentLike],
    calibration: Callable[[], Iterable[Batch]],
    sizes: Mapping[str, int],
    block: int,
    at: torch.device,
    progress: Progress,
    keeper: Partial | None,
) -> dict[str, int]:
    """Bits a layer by `quantize.bits` and `quantize.mean_bits`; the model is as it was.

    Args:
        sizes: weights of the layers that are rounded. block: numbers that share a scale.
    """
    wanted = recipe.quantize
    chosen = part_of(keeper, "chosen")
    found = None if chosen is None else chosen.load()
    if found is not None:
        return dict(found["bits"])
    with files_of(keeper, "widths") as folder:
        request = WidthRequest(
            model=model,
            segments=parts,
            calibration=calibration,
            sizes=sizes,
            widths=WIDTHS,
            mean_bits=4.0 if wanted.mean_bits is None else wanted.mean_bits,
            rounder=wanted.method,
            block=block,
            rel_damp=recipe.prune.rel_damp,
            rows_per_column=recipe.prune.rows_per_column,
            device=at,
            folder=folder,
            progress=progress,
            keeper=part_of(keeper, "widths"),
        )
        bits = assign_widths(wanted.bits, request)
        if chosen is not None:
            chosen.save({"bits": bits})
    return bits
