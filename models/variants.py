"""A block with one of its branches at another size: what a latency table is measured on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import GeneralistError
from models.families.base import blocks_of, join
from models.families.surgery import cut
from models.structure import run_hooked
from models.units import Branch, branches

__all__ = ["Variant", "block_inputs", "variant", "variant_key"]


class Variant(nn.Module):
    """A block called with nothing but its input, returning nothing but its output."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for its input x (text: hidden states, no mask)."""
        out = self.block(x)
        return out[0] if isinstance(out, tuple) else out


def variant(model: nn.Module, branch: Branch, size: Sequence[int]) -> Variant:
    """Return a copy of the branch's block with this branch at ``size`` and no other branch.

    The first groups of every unit are kept: what a kernel costs does not depend on which. The
    block's other branches are replaced by constants where they can go; all zeros does that to
    this branch too. Neither the model nor the copy share a tensor.

    Args:
        size: groups of each unit, at most what the branch has in ``model``.

    Raises:
        GeneralistError: the model has no such branch, or it cannot take that size.
    """
    if len(size) != len(branch.units):
        raise GeneralistError(
            f"branch {branch.name!r}: size {tuple(size)} has {len(size)} numbers, "
            f"expected {len(branch.units)}"
        )
    for name, block, plans in blocks_of(model):
        if branch.name not in [join(name, plan.name) for plan in plans]:
            continue
        kept: dict[str, Sequence[int]] = {}
        for plan in plans:
            if join(name, plan.name) == branch.name:
                counts: Sequence[int] = size
            elif plan.remove is None:
                continue
            else:
                counts = (0,) * len(plan.units)
            kept |= {
                unit.name: range(count) for unit, count in zip(plan.units, counts, strict=True)
            }
        return Variant(cut(copy.deepcopy(block), kept)).eval()
    raise GeneralistError(f"branch {branch.name!r} is not one of this model's (removed already?)")


@torch.no_grad()
def block_inputs(model: nn.Module, example: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return the first input of every block that holds a branch, by the name in `Branch.block`.

    Args:
        example: one batch; inputs come back with its batch size, detached.
    """
    captured: dict[str, Tensor] = {}
    hooks = []
    for name in dict.fromkeys(branch.block for branch in branches(model, example)):

        def note(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name
        ) -> None:
            tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            # cloned: a block may write into its input
            captured.setdefault(name, next(tensors).detach().clone())

        hooks.append(model.get_submodule(name).register_forward_pre_hook(note, with_kwargs=True))
    run_hooked(model, example, hooks)
    return captured


def variant_key(branch: Branch, size: Sequence[int], input_shape: Sequence[int]) -> str:
    """Return a text that says what `variant` at ``size`` computes, in numbers.

    Equal text, equal cost: no name of a model, a block or a weight is in it, so that equal blocks
    of one model, or of two, share a measurement.

    Args:
        input_shape: of the block's input, its batch left out.
    """
    shape = "x".join(str(extent) for extent in input_shape)
    widths = ",".join(f"u{number}={count}" for number, count in enumerate(size))
    return f"{branch.kind} in {shape} | {branch.layers} | {widths}"
