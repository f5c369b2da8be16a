"""What of a model can be made smaller: residual branches, and the units (groups) inside them.

A unit is a set of equal groups (attention heads, MLP neurons, channels) that one consumer layer
reads; a branch is what one size decides about. What a family offers is in `models.families`;
here it is put in execution order and under full names. Works on a model before and after its
BatchNorms were folded, and after it was shrunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.families.base import BranchPlan, UnitPlan, blocks_of, join
from models.structure import run_hooked

__all__ = ["Branch", "Unit", "branches", "sizes"]


@dataclass(frozen=True)
class Unit:
    """Equal groups that one consumer layer reads.

    Attributes:
        name: unique in the model.
        kind: ``heads``, ``neurons`` or ``channels``.
        consumer: full name of the Linear or Conv2d whose input columns are the groups. With its
            weight as a matrix (rows, inputs * kernel area), group i owns the columns
            ``i * width`` to ``(i + 1) * width``.
        groups: how many there are now.
        width: columns a group covers: head_dim, 1, or the kernel's area.
        producers: full names of the layers whose output rows go with a group.
    """

    name: str
    kind: str
    consumer: str
    groups: int
    width: int
    producers: tuple[str, ...]


@dataclass(frozen=True)
class Branch:
    """A residual branch whose size, the groups kept of each of its units, is one decision.

    Attributes:
        name: unique in the model.
        kind: ``attention``, ``mlp``, ``bottleneck``, ``basic``, ``inverted`` or ``convnext``.
        block: name of the block that it lies in, which is what is timed (`models.variants`); in a
            model that `models.structure` does not know it lies inside of a segment.
        units: in execution order.
        removable: a residual path around it keeps the shape, so that size all zeros is possible.
        layers: what its block computes beside its other branches, in numbers, with ``u0``, ``u1``
            for the widths that its size decides; two branches of equal text and equal input
            cost the same at equal sizes.
    """

    name: str
    kind: str
    block: str
    units: tuple[Unit, ...]
    removable: bool
    layers: str = ""

    @property
    def size(self) -> tuple[int, ...]:
        """Groups of each unit now."""
        return tuple(unit.groups for unit in self.units)


@torch.no_grad()
def branches(model: nn.Module, example: tuple[Tensor, ...]) -> list[Branch]:
    """Return the branches that ``model`` has now, in execution order; removed ones are absent.

    Args:
        model: called as ``model(*example)``, left as it was.
        example: one batch; a block that it does not reach is left out.
    """
    found = {name: (block, plans) for name, block, plans in blocks_of(model)}
    order: dict[str, None] = {}
    hooks = []
    for name, (block, _) in found.items():

        def note(_: nn.Module, __: object, name: str = name) -> None:
            order.setdefault(name)

        hooks.append(block.register_forward_pre_hook(note))
    run_hooked(model, example, hooks)
    return [
        _branch(name, found[name][0], plan, found[name][1])
        for name in order
        for plan in found[name][1]
    ]


def sizes(
    branch: Branch, full: Branch, *, steps: int = 8, multiple: int = 16
) -> list[tuple[int, ...]]:
    """Return the sizes that ``branch`` may take, strictly falling, from what it has now.

    Heads go one by one. Of other units the fractions k/steps of ``full`` are kept, then
    1/(2 steps), rounded to ``multiple`` (kernels compute in such tiles, so that what lies between
    costs the same); the units of one branch share the fraction. All zeros is the last if the
    branch can go.

    Args:
        full: the same branch of the untouched model.
        steps: the finest kept fraction is half of 1/steps.
        multiple: of every number of groups but the first size's; 1 for any.
    """
    now = branch.size
    found = [now]
    if all(unit.kind == "heads" for unit in branch.units):
        found += [(count,) * len(now) for count in range(min(now) - 1, 0, -1)]
    else:
        for fraction in (*(k / steps for k in range(steps - 1, 0, -1)), 0.5 / steps):
            wanted = (multiple * round(n * fraction / multiple) for n in full.size)
            size = tuple(
                min(have, max(1, min(multiple, n), want))
                for have, want, n in zip(now, wanted, full.size, strict=True)
            )
            # every unit at most what it was, and one of them less
            if size != found[-1] and all(a <= b for a, b in zip(size, found[-1], strict=True)):
                found.append(size)
    return [*found, (0,) * len(now)] if branch.removable else found


def _branch(name: str, block: nn.Module, plan: BranchPlan, plans: list[BranchPlan]) -> Branch:
    units = tuple(_unit(name, block, unit) for unit in plan.units)
    return Branch(
        name=join(name, plan.name),
        kind=plan.kind,
        block=name,
        units=units,
        removable=plan.remove is not None,
        layers=_describe(block, plan, plans),
    )


def _unit(name: str, block: nn.Module, unit: UnitPlan) -> Unit:
    consumer = block.get_submodule(unit.consumer)
    area = 1
    if isinstance(consumer, nn.Conv2d):
        area = consumer.kernel_size[0] * consumer.kernel_size[1]
    return Unit(
        name=join(name, unit.name),
        kind=unit.kind,
        consumer=join(name, unit.consumer),
        groups=unit.groups,
        width=unit.rows * area,
        producers=tuple(join(name, stack.layer) for stack in unit.producers),
    )


def _inside(name: str, members: tuple[str, ...]) -> bool:
    return any(not part or name == part or name.startswith(f"{part}.") for part in members)


def _describe(block: nn.Module, plan: BranchPlan, plans: list[BranchPlan]) -> str:
    """Return the layers of the block beside its other branches, one word each, in module order."""
    rows: dict[str, str] = {}  # layer -> its output width, where the size decides it
    columns: dict[str, str] = {}
    for number, unit in enumerate(plan.units):
        for stack in unit.producers:
            rows[stack.layer] = _times(stack.copies * unit.rows, number)
        columns[unit.consumer] = _times(unit.rows, number)
    others = tuple(part for other in plans if other is not plan for part in other.members)
    words = []
    for name, module in block.named_modules():
        if _inside(name, others) or _removed(module):
            continue
        if isinstance(module, nn.Linear):
            out = rows.get(name, module.out_features)
            words.append(f"{out}x{columns.get(name, module.in_features)}")
        elif isinstance(module, nn.Conv2d):
            out, into = rows.get(name, module.out_channels), columns.get(name, module.in_channels)
            if module.groups > 1:
                into = 1 if module.groups == module.in_channels else f"{into}/{module.groups}"
            words.append(f"{out}x{into}" + _window(module))
        elif any(True for _ in module.children()):  # a block may scale by a parameter of its own
            words += [own for own, _ in module.named_parameters(recurse=False)]
        elif not isinstance(module, nn.Identity | nn.Dropout) and not _idle(module):
            words.append(type(module).__name__.lower())
    return " ".join(words)


def _removed(module: nn.Module) -> bool:
    """Whether this stands where a sibling was: its cost is the block's, not this branch's."""
    return type(module).__module__.startswith(f"{__package__}.families")


def _times(factor: int, unit: int) -> str:
    return f"u{unit}" if factor == 1 else f"{factor}*u{unit}"


def _idle(module: nn.Module) -> bool:
    return type(module).__name__ == "DropPath"


def _window(conv: nn.Conv2d) -> str:
    """Return kernel, stride, padding and dilation, what differs from a plain product only."""
    plain = {"k": (1, 1), "s": (1, 1), "p": (0, 0), "d": (1, 1)}
    values = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    words = []
    for (letter, usual), value in zip(plain.items(), values, strict=True):
        if value != usual:
            text = value if isinstance(value, str) else "x".join(str(extent) for extent in value)
            words.append(f"{letter}{text}")
    # a padding of its own, found out when it runs: another output size at equal numbers
    return "".join(words) + ("" if type(conv) is nn.Conv2d else type(conv).__name__.lower())
