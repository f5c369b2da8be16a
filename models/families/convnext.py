"""timm's ConvNeXt block: shortcut(x) + gamma * mlp(norm(depthwise(x))).

ConvNeXt-V2's global response norm ties all neurons together: those blocks are left alone.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from models.families.base import BranchPlan, Shift, Stack, UnitPlan, bias_of, register
from models.families.vit import mlp_fits

__all__ = ["convnext"]


def _remove(block: Any) -> nn.Module:
    """Return x + c: without its neurons the depthwise convolution is read by nobody."""
    value = bias_of(block.mlp.fc2)  # (D,)
    if block.gamma is not None:
        value = value * block.gamma.detach()
    return Shift(value.view(1, -1, 1, 1))


@register("timm.models.convnext.ConvNeXtBlock")
def convnext(block: Any) -> list[BranchPlan]:
    """Neurons of the MLP, by Linear layers or 1x1 convolutions."""
    if not mlp_fits(block.mlp):
        return []
    neurons = UnitPlan(
        "mlp", "neurons", "mlp.fc2", (Stack("mlp.fc1"),), block.mlp.fc1.weight.shape[0]
    )
    remove = _remove if isinstance(block.shortcut, nn.Identity) else None
    return [BranchPlan("", "convnext", (neurons,), ("",), remove)]
