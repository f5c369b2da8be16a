"""What an architecture family says about its blocks, and the surgery that follows from it.

A block's residual branches are described by `BranchPlan`; cutting, replaying a cut and measuring
a cut block need nothing else. Names in a plan are relative to the block; "" is the block itself.
Nothing here imports timm or transformers: a family is found by its block's qualified class name,
and it offers only what it recognises piece by piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "FAMILIES",
    "BranchPlan",
    "Constant",
    "Shift",
    "Stack",
    "UnitPlan",
    "bias_of",
    "blocks_of",
    "channelwise",
    "cut_columns",
    "cut_rows",
    "is_batchnorm",
    "join",
    "linear_or_pointwise",
    "plain_conv",
    "register",
]

_CONVOLUTIONS = ("Conv2d", "Conv2dSame")
_BATCHNORMS = ("BatchNorm2d", "BatchNormAct2d")


@dataclass(frozen=True)
class Stack:
    """A producer: a layer whose output rows hold every group, ``copies`` times (qkv: 3)."""

    layer: str
    copies: int = 1


@dataclass(frozen=True)
class UnitPlan:
    """A set of equal groups that one consumer reads.

    Attributes:
        name: relative to the block.
        kind: ``heads``, ``neurons`` or ``channels``.
        consumer: Linear or Conv2d whose input columns are the groups.
        producers: layers whose output rows go with a group.
        norms: BatchNorms between them whose channels go with a group.
        groups: how many there are.
        rows: consecutive channels a group owns (head_dim, or 1).
    """

    name: str
    kind: str
    consumer: str
    producers: tuple[Stack, ...]
    groups: int
    rows: int = 1
    norms: tuple[str, ...] = ()


@dataclass(frozen=True)
class BranchPlan:
    """A residual branch whose size is one decision.

    Attributes:
        name: relative to the block.
        kind: ``attention``, ``mlp``, ``bottleneck``, ``basic``, ``inverted`` or ``convnext``.
        units: in execution order.
        members: modules (with all inside) that belong to this branch and not to its siblings.
        remove: takes the block and returns it without the branch, a constant in its place;
            changes the block it is given. None: the branch cannot go.
        settle: takes the block and the groups left of each unit, after the weights were cut, and
            sets the attributes that repeat those numbers.
    """

    name: str
    kind: str
    units: tuple[UnitPlan, ...]
    members: tuple[str, ...]
    remove: Callable[[nn.Module], nn.Module] | None
    settle: Callable[[nn.Module, tuple[int, ...]], None] = lambda block, groups: None


Family = Callable[[nn.Module], list[BranchPlan]]

# qualified class name of a block -> its branches; families.__init__ imports every entry's module
FAMILIES: dict[str, Family] = {}


def register(*block_classes: str) -> Callable[[Family], Family]:
    """Say which blocks (``package.module.Class``) a family describes.

    The name must match exactly: a subclass may do more in its forward than the family knows.
    """

    def add(family: Family) -> Family:
        FAMILIES.update(dict.fromkeys(block_classes, family))
        return family

    return add


def blocks_of(model: nn.Module) -> Iterator[tuple[str, nn.Module, list[BranchPlan]]]:
    """Yield the name, the module and the branches of every block that a family describes."""
    for name, module in model.named_modules():
        family = FAMILIES.get(f"{type(module).__module__}.{type(module).__qualname__}")
        if family is not None:
            yield name, module, family(module)


def join(prefix: str, name: str) -> str:
    """Return the full name of what is called ``name`` inside ``prefix``; either may be empty."""
    return ".".join(part for part in (prefix, name) if part)


class Constant(nn.Module):
    """What is left of a removed branch: the value that its last layer gave for no input.

    ``forward`` takes anything and returns ``value``, which broadcasts against the residual:
    (D,) for tokens, (1, D, 1, 1) for images.
    """

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value.detach().clone())

    def forward(self, *_: Any, **__: Any) -> Tensor:
        """Return the value."""
        return self.value


class Shift(Constant):
    """What is left of a block whose only branch was removed: act(x + value)."""

    def __init__(self, value: Tensor, act: nn.Module | None = None) -> None:
        super().__init__(value)
        self.act = nn.Identity() if act is None else act

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return act(x + value), of x's shape."""
        return self.act(x + self.value)


def is_batchnorm(module: nn.Module) -> bool:
    """Say whether ``module`` is a BatchNorm that can be cut channel by channel."""
    return type(module).__name__ in _BATCHNORMS and isinstance(module, nn.BatchNorm2d)


def channelwise(*modules: object) -> bool:
    """Say whether all modules treat every channel by itself, as far as can be told.

    True for a BatchNorm and for whatever holds no parameter and no buffer: an activation (also as
    what folding left of a BatchNorm), dropout, Identity, None. A squeeze-and-excite, a LayerNorm,
    a blur pool and a PReLU all hold some.
    """
    for module in modules:
        if not isinstance(module, nn.Module):
            continue
        parts = [*module.children()] if is_batchnorm(module) else [module]
        for part in parts:
            if any(True for _ in part.parameters()) or any(True for _ in part.buffers()):
                return False
    return True


def plain_conv(module: object, *, pointwise: bool = False) -> bool:
    """Say whether ``module`` is an ordinary convolution over all channels (groups = 1)."""
    if not isinstance(module, nn.Conv2d) or type(module).__name__ not in _CONVOLUTIONS:
        return False
    if pointwise and (module.kernel_size != (1, 1) or module.stride != (1, 1)):
        return False
    return module.groups == 1


def linear_or_pointwise(module: object) -> bool:
    """Say whether ``module`` is a Linear layer, or a 1x1 convolution used as one."""
    return type(module) is nn.Linear or plain_conv(module, pointwise=True)


def bias_of(layer: nn.Module) -> Tensor:
    """Return what a Linear or Conv2d gives for an input of zeros: (rows,)."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    if layer.bias is None:
        return layer.weight.new_zeros(layer.weight.shape[0])
    return layer.bias.detach().clone()


def _replace(module: nn.Module, name: str, index: Tensor, axis: int) -> None:
    """Cut one parameter or buffer along ``axis``; nothing where there is none."""
    old = getattr(module, name, None)
    if old is None:
        return
    cut = old.detach().index_select(axis, index.to(old.device)).clone()
    if isinstance(old, nn.Parameter):
        setattr(module, name, nn.Parameter(cut, requires_grad=old.requires_grad))
    else:
        setattr(module, name, cut)


def cut_rows(module: nn.Module, index: Tensor) -> None:
    """Keep the output channels ``index`` of a Linear, Conv2d (depthwise too) or BatchNorm2d."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        _replace(module, name, index, 0)
    count = len(index)
    if isinstance(module, nn.Linear):
        module.out_features = count
    elif isinstance(module, nn.Conv2d):
        module.out_channels = count
        if module.groups > 1:  # depthwise: a channel in for every channel out
            module.groups = module.in_channels = count
    elif isinstance(module, nn.BatchNorm2d):
        module.num_features = count


def cut_columns(module: nn.Module, index: Tensor) -> None:
    """Keep the input channels ``index`` of a Linear or Conv2d of one group."""
    _replace(module, "weight", index, 1)
    if isinstance(module, nn.Linear):
        module.in_features = len(index)
    else:
        assert isinstance(module, nn.Conv2d) and module.groups == 1
        module.in_channels = len(index)


def group_index(kept: list[int], rows: int, *, groups: int, copies: int = 1) -> Tensor:
    """Return the channels that the groups ``kept`` own, in each of ``copies`` stacked blocks."""
    within = (torch.tensor(kept).view(-1, 1) * rows + torch.arange(rows)).reshape(-1)
    return torch.cat([within + copy * groups * rows for copy in range(copies)])
