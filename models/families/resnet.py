"""timm's ResNet blocks: act(shortcut(x) + f(x)), f of two or three convolutions.

Only inner channels are taken: the width of the stream is shared by every block of a stage.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from models.families.base import (
    BranchPlan,
    Shift,
    Stack,
    UnitPlan,
    bias_of,
    channelwise,
    is_batchnorm,
    plain_conv,
    register,
)

__all__ = ["basic", "bottleneck"]


def _remove(block: Any, *, last: int) -> nn.Module:
    """Return act(x + c): c is the last convolution's bias through its norm, if one is left."""
    value = bias_of(getattr(block, f"conv{last}")).view(1, -1, 1, 1)
    norm = getattr(block, f"bn{last}")
    return Shift(norm.eval()(value), getattr(block, f"act{last}"))


def _plan(block: Any, kind: str, convolutions: int) -> list[BranchPlan]:
    numbers = range(1, convolutions + 1)
    fits = all(plain_conv(getattr(block, f"conv{number}")) for number in numbers) and channelwise(
        *(getattr(block, f"bn{number}") for number in numbers),
        *(getattr(block, f"act{number}") for number in numbers),
        getattr(block, "drop_block", None),
        getattr(block, "aa", None),  # a blur pool has a filter a channel
    )
    if not fits:
        return []
    units = []
    for number in numbers[1:]:
        norm = f"bn{number - 1}"
        units.append(
            UnitPlan(
                f"conv{number}",
                "channels",
                f"conv{number}",
                (Stack(f"conv{number - 1}"),),
                getattr(block, f"conv{number}").in_channels,
                norms=(norm,) if is_batchnorm(getattr(block, norm)) else (),
            )
        )
    stays = block.downsample is not None or block.stride != 1 or block.se is not None
    stays = stays or any(getattr(block, f"conv{number}").stride != (1, 1) for number in numbers)
    remove = None if stays else partial(_remove, last=convolutions)
    return [BranchPlan("", kind, tuple(units), ("",), remove)]


@register("timm.models.resnet.BasicBlock")
def basic(block: Any) -> list[BranchPlan]:
    """Channels between the two 3x3 convolutions."""
    return _plan(block, "basic", 2)


@register("timm.models.resnet.Bottleneck")
def bottleneck(block: Any) -> list[BranchPlan]:
    """Channels into and out of the 3x3 convolution; grouped ones (ResNeXt) are left alone."""
    return _plan(block, "bottleneck", 3)
