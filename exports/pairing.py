"""A rewritten graph beside the graph it came from: the same tensors, found again by name.

Our rewritten forms (8 bits, tokens first, half precision) keep names or add a suffix. The
candidate is run twice: as it is, and with every tensor that has a counterpart given from the
reference to what reads it. From right inputs each node shows its own error, while along a healthy
8-bit graph rounding piles up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import onnx

from exports.alike import Known, laid_out, relative_error, rounding_error, weight_error
from exports.embeddings import SCALE_SUFFIX
from exports.onnxfile import INTEGER_PRODUCTS, attribute, initializers, load_model, producers
from exports.spying import Tensors, constants, read_integers, read_weights, spied

Feed: TypeAlias = Mapping[str, np.ndarray]
Kind = Literal["weight", "rounding", "float"]

# what rewriting a graph adds to the name of a tensor that holds the same numbers
_SUFFIXES = ("_quantized", "_dequantized", "_tokens_first", "/first", "_half", "_float")
_BIAS = "_bias_dequantized"
# nodes whose output holds the rounding of activations, and those that look rows up in 4 bits
_ROUNDING = ("QuantizeLinear", "DequantizeLinear", "MatMulNBits", *INTEGER_PRODUCTS)
TABLES = ("GatherBlockQuantized",)
_ALIKE = 0.05  # inside an attention, whose products no form of ours rounds


@dataclass(frozen=True)
class Check:
    """One tensor held against its counterpart.

    Attributes:
        node: what makes it, or multiplies by it.
        tensor: its name.
        kind: what makes it inexact: a rounded weight, rounded activations, or nothing but the
            order of float sums.
        local: its relative error where the node's inputs are the reference's.
        error: its relative error as the graph runs.
        before: the largest relative error that the node's inputs carry as the graph runs.
    """

    node: onnx.NodeProto
    tensor: str
    kind: Kind
    local: float
    error: float
    before: float


class Pair:
    """A candidate graph beside the reference's tensors."""

    def __init__(
        self,
        reference: Path,
        candidate: Path,
        feed: Feed,
        *,
        threads: int = 1,
        provider: str = "cpu",
    ) -> None:
        """Run both; `threads` and `provider` are the candidate's."""
        self.feed, self.threads, self.provider = feed, threads, provider
        source = load_model(reference)
        products = dict(read_weights(source).values())  # where the reference is rounded itself
        self.expected: Tensors = {**constants(source), **products, **feed, **spied(source, feed)}
        self.reference_nodes = producers(source)
        self.model = load_model(candidate)
        self.made_by = producers(self.model)
        self.carried = self._run({})
        self.matched = self._match()
        self.own: Tensors = {}

    def _run(self, given: Tensors) -> Tensors:
        made = spied(self.model, self.feed, given, threads=self.threads, provider=self.provider)
        return {**made, **read_integers(self.model, made)}

    def _match(self) -> Tensors:
        """Return the expected numbers of the candidate's tensors, laid out as they are there."""
        found: Tensors = {}
        for name, values in self.carried.items():
            expected = self._counterpart(name)
            if expected is None or values.dtype.kind != "f" or expected.dtype.kind != "f":
                continue
            turned = laid_out(expected, values)
            if turned is not None:
                found[name] = turned
        return found

    def _counterpart(self, name: str) -> np.ndarray | None:
        """Return the reference's tensor that a name stands for."""
        if name.endswith(_BIAS):  # stored by the output of its layer
            layer = self.reference_nodes.get(name.removesuffix(_BIAS))
            name = layer.input[2] if layer is not None and len(layer.input) > 2 else name
        while name not in self.expected:
            suffix = next((s for s in _SUFFIXES if name.endswith(s)), None)
            if suffix is None:
                return None
            name = name.removesuffix(suffix)
        return self.expected[name]

    def checks(self) -> Iterator[Check]:
        """Yield every comparison in the order in which the graph computes."""
        weights, stored = read_weights(self.model), initializers(self.model)
        rounded = {  # weights that are integers in the file: each layer shows its own rounding
            node.output[0]
            for node in self.model.graph.node
            if node.op_type == "DequantizeLinear" and node.input[0] in stored
        }
        given = {
            name: np.ascontiguousarray(values, self.carried[name].dtype)
            for name, values in self.matched.items()
            if name not in rounded and self.made_by[name].op_type != "QuantizeLinear"  # integers
        }
        self.own = self._run(given)
        for node in self.model.graph.node:
            before = max((self._error(name) for name in self._inputs(node)), default=0.0)
            if node.output[0] in weights:
                name, values = weights[node.output[0]]
                expected = self._counterpart(name)
                if expected is not None and expected.shape in (values.shape, values.T.shape):
                    turned = expected if expected.shape == values.shape else expected.T
                    error = weight_error(values, turned, 1)
                    yield Check(node, name, "weight", error, error, 0.0)
            for name in node.output:
                if name not in self.matched:
                    continue
                got, expected = self.own[name], self.matched[name]
                if name in rounded and got.ndim > 1:
                    axis = int(attribute(node, "axis", 0))  # type: ignore[call-overload]
                    error = weight_error(got, expected, axis)
                    yield Check(node, name, "weight", error, error, 0.0)
                elif node.op_type in _ROUNDING or rounded.intersection(node.input):
                    local = rounding_error(got, expected)
                    yield Check(node, name, "rounding", local, self._error(name), before)
                else:
                    local, kind = relative_error(got, expected), self._kind(node)
                    yield Check(node, name, kind, local, self._error(name), before)

    def _kind(self, node: onnx.NodeProto) -> Kind:
        """Whether a node without rounding of its own looks rows up in a rounded table."""
        makers = (self.made_by[name] for name in node.input if name in self.made_by)
        scaled = any(x.input[0].endswith(SCALE_SUFFIX) for x in makers if x.op_type == "Gather")
        return "weight" if scaled or node.op_type in TABLES else "float"

    def _error(self, name: str) -> float:
        return relative_error(self.carried[name], self.matched[name])

    def _inputs(self, node: onnx.NodeProto) -> set[str]:
        """Return the nearest matched tensors that a node's output depends on."""
        return {name for name in self._behind(node) if name in self.matched}

    def _behind(self, node: onnx.NodeProto) -> list[str]:
        """Return the tensors back to, and with, the nearest matched ones."""
        queue, seen = [*node.input], dict[str, None]()
        while queue:
            name = queue.pop()
            if name not in seen and name in self.made_by:
                seen[name] = None
                if name not in self.matched:
                    queue += self.made_by[name].input
        return list(seen)

    def narrowed(self, check: Check) -> onnx.NodeProto:
        """Return the first node at fault among those between a tensor and the matched ones.

        What lies between has no name in the reference: it is right if some tensor there holds
        its numbers in any layout.
        """
        between = {name for name in self._behind(check.node) if name not in self.matched}
        part = [n for n in self.model.graph.node if between.intersection(n.output)]
        known = Known(self.expected.values())

        def right(name: str) -> bool | None:
            values = self.own[name]
            if name not in between or not tells(values):
                return None
            return known.error(values, _ALIKE) is not None

        return first_wrong([*part, check.node], right, {check.tensor}) or check.node


def tells(values: np.ndarray) -> bool:
    """Whether a tensor's numbers say anything; masks are written in as many ways as exporters."""
    return values.dtype.kind == "f" and len(np.unique(values.reshape(-1)[:4096])) > 2


def first_wrong(
    nodes: Sequence[onnx.NodeProto],
    right: Callable[[str], bool | None],
    wrong: set[str],
) -> onnx.NodeProto | None:
    """Return the first node whose inputs are right and whose output is wrong.

    Args:
        nodes: in topological order.
        right: whether a tensor has a counterpart; None where that cannot be told.
        wrong: tensors known to have none.
    """
    judged = {n: n not in wrong and right(n) for node in nodes for n in node.output if n}
    fine = {name for name, verdict in judged.items() if verdict}
    after: dict[str, list[str]] = defaultdict(list)  # what is made from a tensor
    for node in nodes:
        for name in node.input:
            after[name] += [out for out in node.output if out]
    # an intermediate step that the reference takes in another way is excused where all that is
    # made from it is right; that something is does not do: a softmax may swallow any error
    for node in reversed(nodes):
        fine.update(
            n for n in node.output if n not in wrong and after[n] and fine.issuperset(after[n])
        )
    lost = {name for name, verdict in judged.items() if verdict is False} - fine
    suspects = [node for node in nodes if lost.intersection(node.output)]
    sound = [node for node in suspects if not lost.intersection(node.input)]
    return next(iter(sound or suspects), None)
