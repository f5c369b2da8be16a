"""timm's inverted residual (MobileNetV2, parts of EfficientNet): expand, depthwise, project.

Left alone: blocks with squeeze-and-excite, space-to-depth or grouped convolutions, and
DepthwiseSeparable, which has no inner width of its own.
"""

from __future__ import annotations

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

__all__ = ["inverted"]


def _depthwise(conv: Any) -> bool:
    return (
        isinstance(conv, nn.Conv2d)
        and type(conv).__name__ in ("Conv2d", "Conv2dSame")
        and conv.groups == conv.in_channels == conv.out_channels > 1
    )


def _remove(block: Any) -> nn.Module:
    value = bias_of(block.conv_pwl).view(1, -1, 1, 1)
    return Shift(block.bn3.eval()(value))


@register("timm.models._efficientnet_blocks.InvertedResidual")
def inverted(block: Any) -> list[BranchPlan]:
    """Channels of the expansion, through the depthwise convolution."""
    fits = (
        getattr(block, "conv_s2d", None) is None
        and plain_conv(block.conv_pw)
        and plain_conv(block.conv_pwl)
        and _depthwise(block.conv_dw)
        and channelwise(block.bn1, block.bn2, block.bn3, block.se, getattr(block, "aa", None))
    )
    if not fits:
        return []
    channels = UnitPlan(
        "conv_pwl",
        "channels",
        "conv_pwl",
        (Stack("conv_pw"), Stack("conv_dw")),
        block.conv_pwl.in_channels,
        norms=tuple(name for name in ("bn1", "bn2") if is_batchnorm(getattr(block, name))),
    )
    remove = _remove if block.has_skip else None
    return [BranchPlan("", "inverted", (channels,), ("",), remove)]
