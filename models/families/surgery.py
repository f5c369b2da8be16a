"""Take groups out of a model's weights, in place, as the plans of its families say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from models.errors import GeneralistError
from models.families.base import (
    BranchPlan,
    UnitPlan,
    blocks_of,
    cut_columns,
    cut_rows,
    group_index,
    join,
)

__all__ = ["cut", "shrink_structure"]


def _checked(name: str, unit: UnitPlan, kept: Sequence[int]) -> list[int]:
    """Return the groups that stay as a list; they must be distinct and in range."""
    groups = [int(group) for group in kept]
    wrong = [group for group in groups if not 0 <= group < unit.groups]
    if wrong:
        raise GeneralistError(
            f"unit {name!r}: group {wrong[0]} does not exist; it has {unit.groups}, from 0"
        )
    if len(set(groups)) != len(groups):
        raise GeneralistError(f"unit {name!r}: a group is named twice; name each once")
    return groups


def _cut_unit(block: nn.Module, unit: UnitPlan, kept: list[int]) -> None:
    for stack in unit.producers:
        index = group_index(kept, unit.rows, groups=unit.groups, copies=stack.copies)
        cut_rows(block.get_submodule(stack.layer), index)
    index = group_index(kept, unit.rows, groups=unit.groups)
    for norm in unit.norms:
        cut_rows(block.get_submodule(norm), index)
    cut_columns(block.get_submodule(unit.consumer), index)


def _cut_branch(
    block_name: str, block: nn.Module, plan: BranchPlan, kept: Mapping[str, list[int]]
) -> nn.Module:
    """Cut one branch and return the block: another module where nothing else was in it."""
    names = [join(block_name, unit.name) for unit in plan.units]
    left = [kept.get(name) for name in names]
    counts = [
        unit.groups if groups is None else len(groups)
        for unit, groups in zip(plan.units, left, strict=True)
    ]
    if not any(counts):
        if plan.remove is None:
            raise GeneralistError(
                f"unit {names[0]!r}: no group left, but its branch cannot go (the block has no "
                "residual path that keeps the shape); keep at least one"
            )
        return plan.remove(block)
    if not all(counts):
        empty = names[counts.index(0)]
        raise GeneralistError(
            f"unit {empty!r}: no group left; keep at least one, or empty every unit of the branch "
            f"({', '.join(names)})"
        )
    for unit, groups in zip(plan.units, left, strict=True):
        if groups is not None:
            _cut_unit(block, unit, groups)
    plan.settle(block, tuple(counts))
    return block


@torch.no_grad()
def cut(model: nn.Module, kept: Mapping[str, Sequence[int]]) -> nn.Module:
    """Keep the named groups of the named units, in the order given; other units stay whole.

    ``model`` is changed in place and returned; where ``model`` is itself a block whose only
    branch went, what is left of it is returned instead.

    Raises:
        GeneralistError: an unknown unit, a group out of range or named twice, a unit without
            groups in a branch that cannot go or that keeps groups of another unit. ``model`` may
            be half cut then.
    """
    found = list(blocks_of(model))
    units = {
        join(name, unit.name): unit for name, _, plans in found for p in plans for unit in p.units
    }
    unknown = [name for name in kept if name not in units]
    if unknown:
        raise GeneralistError(
            f"unit {unknown[0]!r} is not one of this model's {len(units)}"
            + (f" ({next(iter(units))!r}, ...)" if units else "")
        )
    wanted = {name: _checked(name, units[name], groups) for name, groups in kept.items()}
    for name, block, plans in found:
        left = block
        for plan in plans:
            if any(join(name, unit.name) in wanted for unit in plan.units):
                left = _cut_branch(name, left, plan, wanted)
        if left is not block:
            left.train(block.training)
            if not name:
                return left
            model.set_submodule(name, left)
    return model


def shrink_structure(model: nn.Module, units: Mapping[str, int]) -> None:
    """Give every named unit that many groups; which ones does not matter, weights are loaded."""
    cut(model, {name: range(count) for name, count in units.items()})
