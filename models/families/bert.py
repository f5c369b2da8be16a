"""transformers' post-norm encoder layers: LayerNorm(x + f(x)), twice.

A removed branch leaves LayerNorm(x + c): the norm belongs to the stream, not to the branch.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from models.families.base import (
    BranchPlan,
    Constant,
    Stack,
    UnitPlan,
    bias_of,
    channelwise,
    register,
)

__all__ = ["bert", "distilbert"]


class _NoAttention(nn.Module):
    """Stands for a self-attention whose output nobody reads."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        """Hand the input on, with no attention weights."""
        return hidden_states, None


class _ConstantAttention(Constant):
    """A constant for a caller that expects (output, attention weights)."""

    def forward(self, *_: Any, **__: Any) -> tuple[Tensor, None]:  # type: ignore[override]
        """Return the value, with no attention weights."""
        return self.value, None


def _linears(*layers: object) -> bool:
    return all(type(layer) is nn.Linear for layer in layers)


def _settle_bert(block: Any, groups: tuple[int, ...]) -> None:
    attention = block.attention.self
    attention.num_attention_heads = groups[0]
    attention.all_head_size = groups[0] * attention.attention_head_size


def _remove_bert_attention(block: Any) -> nn.Module:
    output = block.attention.output
    block.attention.self = _NoAttention()
    output.dense, output.dropout = Constant(bias_of(output.dense)), nn.Identity()
    return block


def _remove_bert_mlp(block: Any) -> nn.Module:
    block.intermediate = nn.Identity()
    block.output.dense = Constant(bias_of(block.output.dense))
    block.output.dropout = nn.Identity()
    return block


@register(
    *(
        f"transformers.models.{family}.modeling_{family}.{prefix}Layer"
        for family, prefix in (
            ("bert", "Bert"),
            ("roberta", "Roberta"),
            ("xlm_roberta", "XLMRoberta"),
            ("camembert", "Camembert"),
            ("electra", "Electra"),
            ("mpnet", "MPNet"),
        )
    )
)
def bert(block: Any) -> list[BranchPlan]:
    """Heads of the attention; neurons of the MLP.

    MPNet adds a bias a head that all layers share, so its heads are left alone.
    """
    found = []
    attention = getattr(block.attention, "self", None)
    decoder = getattr(block, "is_decoder", False) or getattr(block, "add_cross_attention", False)
    names = ("query", "key", "value")
    if (
        attention is not None
        and not decoder
        and all(hasattr(attention, name) for name in names)
        and _linears(*(getattr(attention, name) for name in names), block.attention.output.dense)
    ):
        heads = UnitPlan(
            "attention",
            "heads",
            "attention.output.dense",
            tuple(Stack(f"attention.self.{name}") for name in names),
            attention.num_attention_heads,
            attention.attention_head_size,
        )
        members = ("attention.self", "attention.output.dense", "attention.output.dropout")
        found.append(
            BranchPlan(
                "attention", "attention", (heads,), members, _remove_bert_attention, _settle_bert
            )
        )
    inner = getattr(block.intermediate, "dense", None)
    last = getattr(block.output, "dense", None)
    if _linears(inner, last) and channelwise(block.intermediate.intermediate_act_fn):
        neurons = UnitPlan(
            "intermediate",
            "neurons",
            "output.dense",
            (Stack("intermediate.dense"),),
            block.intermediate.dense.out_features,
        )
        members = ("intermediate", "output.dense", "output.dropout")
        found.append(BranchPlan("intermediate", "mlp", (neurons,), members, _remove_bert_mlp))
    return found


def _settle_distilbert(block: Any, groups: tuple[int, ...]) -> None:
    block.attention.n_heads = groups[0]


def _remove_distilbert_attention(block: Any) -> nn.Module:
    block.attention = _ConstantAttention(bias_of(block.attention.out_lin))
    return block


def _remove_distilbert_mlp(block: Any) -> nn.Module:
    block.ffn = Constant(bias_of(block.ffn.lin2))
    return block


@register("transformers.models.distilbert.modeling_distilbert.TransformerBlock")
def distilbert(block: Any) -> list[BranchPlan]:
    """Heads of the attention; neurons of the MLP."""
    found = []
    attention, ffn = block.attention, block.ffn
    names = ("q_lin", "k_lin", "v_lin")
    # an attention without attention_head_size reshapes by n_heads and dim: not cut
    if hasattr(attention, "attention_head_size") and _linears(
        *(getattr(attention, name) for name in names), attention.out_lin
    ):
        heads = UnitPlan(
            "attention",
            "heads",
            "attention.out_lin",
            tuple(Stack(f"attention.{name}") for name in names),
            attention.n_heads,
            attention.attention_head_size,
        )
        found.append(
            BranchPlan(
                "attention",
                "attention",
                (heads,),
                ("attention",),
                _remove_distilbert_attention,
                _settle_distilbert,
            )
        )
    if _linears(getattr(ffn, "lin1", None), getattr(ffn, "lin2", None)) and channelwise(
        ffn.activation
    ):
        neurons = UnitPlan(
            "ffn", "neurons", "ffn.lin2", (Stack("ffn.lin1"),), ffn.lin1.out_features
        )
        found.append(BranchPlan("ffn", "mlp", (neurons,), ("ffn",), _remove_distilbert_mlp))
    return found
