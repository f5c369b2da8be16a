"""timm's pre-norm transformer block (VisionTransformer, DeiT): x + ls(f(norm(x))), twice."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from models.families.base import (
    BranchPlan,
    Constant,
    Stack,
    UnitPlan,
    bias_of,
    channelwise,
    linear_or_pointwise,
    register,
)

__all__ = ["mlp_fits", "vit"]


def _attention_fits(attn: Any) -> bool:
    """Say whether heads can be taken from this attention.

    An older attention has no ``attn_dim`` and reshapes its heads to the width of its input: fewer
    heads would fail there, so the branch is left out. Norms of q and k act inside one head and
    may stay; a norm over all heads and an output gate may not.
    """
    if type(attn).__name__ != "Attention" or not hasattr(attn, "attn_dim"):
        return False
    wide = attn.num_heads * attn.head_dim
    return (
        type(attn.qkv) is nn.Linear
        and type(attn.proj) is nn.Linear
        and attn.attn_dim == wide == attn.proj.in_features
        and attn.qkv.out_features == 3 * wide
        and getattr(attn, "gate", None) is None
        and channelwise(getattr(attn, "norm", None))
    )


def mlp_fits(mlp: Any) -> bool:
    """Say whether ``mlp`` is timm's plain Mlp, by Linear or 1x1 convolutions."""
    return (
        type(mlp).__name__ == "Mlp"
        and linear_or_pointwise(mlp.fc1)
        and linear_or_pointwise(mlp.fc2)
        and channelwise(mlp.act, mlp.drop1, getattr(mlp, "norm", None), mlp.drop2)
    )


def _settle_heads(block: Any, groups: tuple[int, ...]) -> None:
    block.attn.num_heads = groups[0]
    block.attn.attn_dim = groups[0] * block.attn.head_dim


def _remove(block: Any, *, branch: str, last: str, number: int) -> nn.Module:
    """Put the constant in the branch's place; its norm and layer scale go with it."""
    value = bias_of(block.get_submodule(last))  # (D,)
    setattr(block, branch, Constant(getattr(block, f"ls{number}")(value)))
    for part in ("norm", "ls", "drop_path"):
        setattr(block, f"{part}{number}", nn.Identity())
    return block


@register("timm.models.vision_transformer.Block")
def vit(block: Any) -> list[BranchPlan]:
    """Heads of the attention; neurons of the MLP."""
    found = []
    attn, mlp = block.attn, block.mlp
    if _attention_fits(attn):
        heads = UnitPlan(
            "attn", "heads", "attn.proj", (Stack("attn.qkv", 3),), attn.num_heads, attn.head_dim
        )
        found.append(
            BranchPlan(
                "attn",
                "attention",
                (heads,),
                ("norm1", "attn", "ls1", "drop_path1"),
                partial(_remove, branch="attn", last="attn.proj", number=1),
                _settle_heads,
            )
        )
    if mlp_fits(mlp):
        neurons = UnitPlan(
            "mlp", "neurons", "mlp.fc2", (Stack("mlp.fc1"),), mlp.fc1.weight.shape[0]
        )
        found.append(
            BranchPlan(
                "mlp",
                "mlp",
                (neurons,),
                ("norm2", "mlp", "ls2", "drop_path2"),
                partial(_remove, branch="mlp", last="mlp.fc2", number=2),
            )
        )
    return found
