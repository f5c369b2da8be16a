"""Lay a transformer's activations out as (tokens, batch, width) so that heads need no transposing.

The matrix product of ONNX Runtime reads the axes (tokens, batch, heads, width) in place, by
strides, when tokens come first (FusedMatMul with transBatchA and transBatchB), so the transposes
of queries, keys and values go away; every Linear, LayerNorm, GELU and residual Add acts on tokens
one by one and does not care. The layout changes once at each end. Where the model then reads its
first token only (a class token), what the other tokens' last layers compute is dropped.

Numbers are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from exports.attention import Attention, find_attention
from exports.embeddings import MICROSOFT
from exports.first_token import ONE_BY_ONE, TWO, Chain, choose_early
from exports.onnxfile import (
    INTEGER_PRODUCTS,
    attribute,
    consumers,
    drop_dead_nodes,
    initializers,
    replace_nodes,
    require_opset,
)
from exports.shapes import known_shapes

_SWAP = [1, 0, 2]  # (B, T, D) <-> (T, B, D)


def tokens_first(model: onnx.ModelProto) -> int:
    """Rewrite a graph's attentions and what lies between them, in place.

    Args:
        model: a graph whose Linears are one operator each (`exports.fused`).

    Returns:
        How many attentions were rewritten; 0 leaves the graph as it was.
    """
    shapes = known_shapes(model)
    ranks = {name: len(shape) for name, shape in shapes.items()}
    every = find_attention(model, shapes)
    found = {item.out: item for item in every if _is_plain(item, ranks)}
    if not found:
        return 0
    _Layout(model, found, ranks).rewrite()
    require_opset(model, MICROSOFT)
    drop_dead_nodes(model)
    return len(found)


def _is_plain(item: Attention, ranks: dict[str, int]) -> bool:
    """Whether an attention's ends have the three axes (batch, tokens, width)."""
    return all(ranks.get(name) == 3 for name in (*item.sources, item.out))


class _Layout:
    """One graph with its attentions; tensors of the new layout have names of their own."""

    def __init__(
        self, model: onnx.ModelProto, found: dict[str, Attention], ranks: dict[str, int]
    ) -> None:
        self.model, self.found, self.ranks = model, found, ranks
        self.stored, self.readers = initializers(model), consumers(model)
        self.outputs = {value.name for value in model.graph.output}
        self.inner = {name for item in found.values() for name in item.inner}
        ends = ((*item.sources, item.out) for item in found.values())
        self.tokens = {name for names in ends for name in names}
        self.chain = Chain()
        self.members = self._grow()  # nodes by output that work in the new layout
        self.renamed = self._outside()

    def rewrite(self) -> None:
        """Replace the nodes."""
        made = self.members | set(self.found)
        entries = self.tokens - made
        nodes: list[onnx.NodeProto] = [
            self._swap(value.name) for value in self.model.graph.input if value.name in entries
        ]
        for node in self.model.graph.node:
            name = node.output[0]
            if name in self.found:
                nodes += self._attend(self.found[name])
            elif name in self.inner:
                continue
            else:
                if name in self.members:
                    for index, data in enumerate(node.input):
                        node.input[index] = self._new(data)
                    node.output[0] = self._new(name)
                nodes.append(node)
                nodes += [self._swap(out) for out in node.output if out in entries]
            if name in made and name in self.renamed:  # read outside in the old layout too
                nodes.append(self._leave(name))
        replace_nodes(self.model, choose_early(self.model, nodes, self.chain))

    def _grow(self) -> set[str]:
        """Return outputs of the nodes reached from the attentions that act token by token."""
        members: set[str] = set()
        while True:
            before = len(members)
            for node in self.model.graph.node:
                name = node.output[0]
                if name in members or name in self.inner or self.ranks.get(name) != 3:
                    continue
                data = self._data(node)
                if data and (
                    all(x in self.tokens for x in data)
                    or (name in self.tokens and len(data) == 1 and self.ranks.get(data[0]) == 3)
                ):
                    members.add(name)
                    self.tokens |= {name, *data}
            if len(members) == before:
                return members

    def _data(self, node: onnx.NodeProto) -> list[str]:
        """Return the token tensors that a node reads; none if it mixes tokens."""
        if node.op_type in INTEGER_PRODUCTS:
            return [node.input[0]]
        if node.op_type == "LayerNormalization" and attribute(node, "axis", -1) in (-1, 2):
            return [node.input[0]]
        if node.op_type in ONE_BY_ONE:
            return [node.input[0]] if all(self._is_even(x) for x in node.input[1:]) else []
        if node.op_type in TWO:
            return [name for name in node.input if not self._is_even(name)]
        return []

    def _is_even(self, name: str) -> bool:
        """Whether a stored tensor is the same for every row and token."""
        sizes = list(self.stored[name].dims) if name in self.stored else [2, 1]
        return all(size == 1 for size in sizes[:-1])

    def _outside(self) -> set[str]:
        """Return the token tensors that exist in both layouts."""
        made = self.members | set(self.found)
        return {
            name
            for name in self.tokens
            if name not in made
            or name in self.outputs
            or any(
                node.output[0] not in made and node.output[0] not in self.inner
                for node in self.readers.get(name, [])
            )
        }

    def _new(self, name: str) -> str:
        """Return the name of a tensor in the new layout."""
        return f"{name}_tokens_first" if name in self.renamed else name

    def _swap(self, name: str) -> onnx.NodeProto:
        return helper.make_node(
            "Transpose", [name], [self._new(name)], f"{name}/tokens_first", perm=_SWAP
        )

    def _leave(self, name: str) -> onnx.NodeProto:
        self.chain.left.add(name)
        return helper.make_node(
            "Transpose", [self._new(name)], [name], f"{name}/batch_first", perm=_SWAP
        )

    def _constant(self, name: str, numbers: Iterable[int]) -> str:
        """Store a list of whole numbers once and return its name."""
        if name not in self.stored:
            tensor = numpy_helper.from_array(np.asarray(list(numbers), np.int64), name)
            self.model.graph.initializer.append(tensor)
            self.stored[name] = tensor
        return name

    def _attend(self, item: Attention) -> list[onnx.NodeProto]:
        """Return the nodes of one attention in the new layout."""
        out, heads, width = item.out, item.heads, item.width
        parts = [f"{out}/{letter}" for letter in "qkv"]  # (T, B, H, E)
        if len(item.sources) == 1:
            # queries, keys and values lie side by side: one view, three contiguous pieces
            target = self._constant(f"heads_{3 * heads}_{width}", [0, 0, 3 * heads, width])
            sizes = self._constant(f"thirds_{heads}", [heads] * 3)
            view = [self._new(item.sources[0]), target]
            nodes = [
                helper.make_node("Reshape", view, [f"{out}/qkv"], f"{out}/view"),
                helper.make_node("Split", [f"{out}/qkv", sizes], parts, f"{out}/split", axis=2),
            ]
        else:
            target = self._constant(f"heads_{heads}_{width}", [0, 0, heads, width])
            nodes = [
                helper.make_node("Reshape", [self._new(source), target], [part], f"{part}_view")
                for source, part in zip(item.sources, parts, strict=True)
            ]
            self.chain.inputs[parts[0]] = self._new(item.sources[0])
        query, key, value = parts
        scores, weights = f"{out}/scores", f"{out}/weights"
        nodes.append(
            helper.make_node(
                "FusedMatMul",
                [query, key],
                [scores],
                f"{out}/score",
                domain=MICROSOFT,
                alpha=item.scale,
                transBatchA=1,
                transBatchB=1,
                transB=1,
            )
        )
        self.chain.inputs[scores] = query
        if item.mask:
            masked = f"{out}/masked"
            nodes.append(helper.make_node("Add", [scores, item.mask], [masked], f"{out}/mask"))
            self.chain.inputs[masked] = scores
            self.chain.masks[masked] = item.mask
            scores = masked
        self.chain.inputs |= {
            weights: scores,
            f"{out}/mix": weights,
            f"{out}/turned": f"{out}/mix",
            self._new(out): f"{out}/turned",
        }
        merged = self._constant("merged_heads", [0, 0, -1])
        return [
            *nodes,
            helper.make_node("Softmax", [scores], [weights], f"{out}/softmax", axis=-1),
            helper.make_node(
                "FusedMatMul",
                [weights, value],
                [f"{out}/mix"],  # (B, H, T, E)
                f"{out}/weigh",
                domain=MICROSOFT,
                transBatchB=1,
            ),
            helper.make_node(
                "Transpose", [f"{out}/mix"], [f"{out}/turned"], f"{out}/turn", perm=[2, 0, 1, 3]
            ),
            helper.make_node(
                "Reshape", [f"{out}/turned", merged], [self._new(out)], f"{out}/merge"
            ),
        ]
