"""Compute one token where a model reads one: the class token of the last layers.

Keys and values need every token, what comes after them does not: in the last layer of a network
that ends in `tokens[:, 0]`, queries, projection and MLP of the other tokens are never read.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from exports.onnxfile import INTEGER_PRODUCTS, array, attribute, initializers

# operators that act on each token alone, reading one tensor of tokens or two
ONE_BY_ONE = ("QuantizeLinear", "DequantizeLinear", "Gelu", "Relu", "Tanh", "Erf", "Sigmoid")
TWO = ("Add", "Sub", "Mul", "Div")
_FIRST = "first_token"


@dataclass
class Chain:
    """What the attentions of the layout (tokens, batch, width) look like from their end.

    Attributes:
        inputs: by tensor made inside an attention, the input of which it needs the same tokens.
        masks: by tensor of masked scores, the mask (..., queries or 1, keys).
        left: tensors that are turned back to (batch, tokens, width).
    """

    inputs: dict[str, str] = field(default_factory=dict)
    masks: dict[str, str] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)


def choose_early(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], chain: Chain
) -> list[onnx.NodeProto]:
    """Return the nodes with the choice of token 0 moved back to where all tokens are needed.

    Args:
        model: the graph, which receives two constants.
        nodes: its nodes in topological order, in the layout (tokens, batch, width).
        chain: its attentions and its ends.
    """
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in nodes:
        for name in node.input:
            readers[name].append(node)
    stored = initializers(model)
    outputs = {value.name for value in model.graph.output}
    for choice in nodes:
        name = choice.input[0] if choice.input else ""
        alone = name in chain.left and len(readers[name]) == 1 and name not in outputs
        if alone and _is_first(choice, stored):
            for constant in (_FIRST, f"{_FIRST}_axis"):
                tensor = numpy_helper.from_array(np.zeros(1, np.int64), constant)
                model.graph.initializer.append(tensor)
            return _Walk(nodes, readers, set(stored) | outputs, chain).back_from(choice)
    return nodes


def _is_first(node: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> bool:
    """Whether a node is [:, 0]."""
    if node.op_type != "Gather" or node.input[1] not in stored or attribute(node, "axis", 0) != 1:
        return False
    index = array(stored[node.input[1]])
    return index.ndim == 0 and int(index) == 0


class _Walk:
    """Goes from the choice back towards the inputs, once."""

    def __init__(
        self,
        nodes: list[onnx.NodeProto],
        readers: dict[str, list[onnx.NodeProto]],
        fixed: set[str],
        chain: Chain,
    ) -> None:
        self.nodes, self.readers, self.fixed, self.chain = nodes, readers, fixed, chain

    def back_from(self, choice: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return the nodes that choose as early as possible."""
        leave = next(n for n in self.nodes if n.output[0] == choice.input[0])
        last = leave.input[0]
        wanted, single = {last}, set[str]()  # tensors needed for token 0; made for it alone
        for node in reversed(self.nodes):
            name = node.output[0]
            inputs = self._inputs(node) if name in wanted else []
            if inputs and all(n is leave or n.output[0] in single for n in self.readers[name]):
                single.add(name)
                wanted.update(inputs)
        first = {name: f"{name}/first" for name in wanted - single}
        result: list[onnx.NodeProto] = []
        for node in self.nodes:
            if node is leave:
                continue
            if node is choice:
                source = [first.get(last, last), f"{_FIRST}_axis"]
                result.append(helper.make_node("Squeeze", source, list(node.output), node.name))
                continue
            if node.output[0] in single:
                result += self._narrow(node, first)
            result.append(node)
            result += [
                helper.make_node("Gather", [name, _FIRST], [first[name]], first[name], axis=0)
                for name in node.output
                if name in first
            ]
        return result

    def _inputs(self, node: onnx.NodeProto) -> list[str]:
        """Return the inputs of which a node needs token 0 alone for its own; none: it needs all."""
        name = node.output[0]
        if name in self.chain.inputs:
            return [self.chain.inputs[name]]
        if node.op_type in INTEGER_PRODUCTS or node.op_type in (*ONE_BY_ONE, "LayerNormalization"):
            return [node.input[0]]
        if node.op_type in TWO:
            return [name for name in node.input if name not in self.fixed]
        return []

    def _narrow(self, node: onnx.NodeProto, first: dict[str, str]) -> list[onnx.NodeProto]:
        """Make a node read token 0; return what has to come before it."""
        name = node.output[0]
        needed = self._inputs(node)
        for index, data in enumerate(node.input):
            if data in needed and data in first and (name not in self.chain.inputs or index == 0):
                node.input[index] = first[data]
        mask = self.chain.masks.get(name)
        if mask is None:
            return []
        row = f"{name}/first_query"  # the row of query 0, also where one row serves all
        node.input[1] = row
        return [helper.make_node("Gather", [mask, _FIRST], [row], row, axis=-2)]
