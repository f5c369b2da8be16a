"""Make a model smaller by taking heads, neurons, channels or whole branches out of it.

What is left computes exactly what the model computed with the columns of its consumers that
belong to the removed groups set to zero (and, for a branch without groups, its constant).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from models.checkpoint import Bundle
from models.families.base import blocks_of, join
from models.families.surgery import cut

__all__ = ["shrink"]


@torch.no_grad()
def shrink(bundle: Bundle, kept: Mapping[str, Sequence[int]]) -> Bundle:
    """Return a copy of ``bundle`` that holds only the named groups.

    Args:
        kept: by unit name (`models.units`), the groups that stay, in the order wanted; units not
            named stay whole. Where no unit of a branch keeps a group, the branch is replaced by
            `models.families.base.Constant`: the bias of its last layer, through the norm, layer
            scale or gamma after it.

    The change is recorded as ``{"op": "shrink", "units": {unit: groups left}}``, one record for
    all shrinks of a bundle, so that a checkpoint rebuilds the shapes in one step.

    Raises:
        GeneralistError: an unknown unit, a group out of range or named twice, a unit without
            groups in a branch that cannot go or that keeps groups of another unit.
    """
    copied = bundle.copy()
    before = _groups(copied)
    cut(copied.model, kept)
    changed = {name: len(kept[name]) for name in kept if len(kept[name]) != before[name]}
    if not changed:
        return copied
    merged: dict[str, int] = {}
    for record in copied.delta:
        if record["op"] == "shrink":
            merged |= record["units"]
    # the other operations do not touch the same shapes, so one record at the end is as good
    copied.delta = [record for record in copied.delta if record["op"] != "shrink"]
    copied.delta.append({"op": "shrink", "units": merged | changed})
    copied.model.eval()
    return copied


def _groups(bundle: Bundle) -> dict[str, int]:
    return {
        join(name, unit.name): unit.groups
        for name, _, plans in blocks_of(bundle.model)
        for plan in plans
        for unit in plan.units
    }
