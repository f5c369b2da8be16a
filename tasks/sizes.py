"""What sizes a recipe allows, on which inputs: the same for what is timed and what is picked."""

from __future__ import annotations

import torch

from models.checkpoint import Bundle
from models.units import Branch, sizes
from tasks import batches
from tasks.config import Recipe

Size = tuple[int, ...]


def choices(branch: Branch, full: Branch, recipe: Recipe) -> list[Size]:
    """Sizes that `branch` may take, falling from what it has now, by `shrink.kinds`.

    Args:
        full: the same branch of the untouched model.
    """
    kinds = set(recipe.shrink.kinds)
    inner = {unit.kind for unit in branch.units} <= kinds
    now, *smaller = sizes(branch, full, multiple=recipe.shrink.multiple)
    return [now, *(size for size in smaller if (inner if any(size) else "blocks" in kinds))]


def timed_example(bundle: Bundle, recipe: Recipe, tokens: int | None) -> batches.Batch:
    """A batch of the shape that is timed: latencies are by the shapes of the blocks' inputs.

    Args:
        tokens: length of a text, as the profile stage's metrics tell it; None for images.
    """
    rows = recipe.verify.batch
    if bundle.modality == "image":
        (pixels,) = batches.blank(bundle)
        return (pixels[:1].expand(rows, -1, -1, -1),)
    assert tokens is not None
    ids = torch.ones(rows, tokens, dtype=torch.int64)
    return ids, ids
