"""Find attention in a graph: Softmax of scaled query-key products, times values, heads merged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from exports.onnxfile import array, attribute, consumers, initializers, producers
from exports.shapes import Shape, keeps_rows, known_shapes

_HEADS_OUT = [0, 2, 1, 3]  # (B, T, H, E) -> (B, H, T, E), and back
_KEYS_OUT = [0, 2, 3, 1]  # (B, T, H, E) -> (B, H, E, T)
_KEYS_LAST = [0, 1, 3, 2]  # (B, H, T, E) -> (B, H, E, T)
_THREE_OUT = [2, 0, 3, 1, 4]  # (B, T, 3, H, E) -> (3, B, H, T, E)


@dataclass(frozen=True)
class Attention:
    """One attention, from projected queries, keys and values to merged heads.

    Attributes:
        sources: tensors (B, T, heads * width): query, key, value; or one (B, T, 3 heads * width)
            that holds all three in this order.
        heads: number of heads.
        width: numbers a head.
        scale: factor of the scores.
        mask: the tensor added to the scores, or "".
        out: the merged heads (B, T, heads * width).
        inner: every tensor made on the way, `out` too.
    """

    sources: tuple[str, ...]
    heads: int
    width: int
    scale: float
    mask: str
    out: str
    inner: frozenset[str]


def find_attention(
    model: onnx.ModelProto, shapes: Mapping[str, Shape] | None = None
) -> list[Attention]:
    """Return the attentions whose inner tensors nothing else reads, in graph order.

    Args:
        model: the graph.
        shapes: its `known_shapes`, where the caller has them already.
    """
    finder = _Finder(model, known_shapes(model) if shapes is None else shapes)
    found = (finder.around(node) for node in model.graph.node if node.op_type == "Softmax")
    return [attention for attention in found if attention is not None]


class _Finder:
    """Looks outwards from a Softmax; a form that it does not know is left alone."""

    def __init__(self, model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> None:
        self.known = shapes
        # a part of a network that is timed by itself: its input tells no size (`microbench`)
        given = [shapes.get(value.name, ()) for value in model.graph.input]
        self.is_part = any(shape and not any(shape) for shape in given)
        self.stored = initializers(model)
        self.made_by, self.readers = producers(model), consumers(model)
        self.outputs = {value.name for value in model.graph.output}

    def around(self, softmax: onnx.NodeProto) -> Attention | None:
        """Return the attention that a Softmax is the middle of."""
        inner = {softmax.output[0]}
        last = int(attribute(softmax, "axis", -1))  # type: ignore[call-overload]
        out = self._after(softmax, inner)
        scores, mask = self._scores(softmax.input[0], inner)
        if out is None or scores is None or last not in (-1, 3):
            return None
        product, scale = self._scaled(scores, inner)
        if product is None or product.op_type != "MatMul":
            return None
        inner.add(product.output[0])
        query, query_scale = self._scaled(product.input[0], inner)
        key, key_scale = self._scaled(product.input[1], inner)
        values = self.made_by.get(self.readers[softmax.output[0]][0].input[1])
        if query is None or key is None or values is None:
            return None
        ends = self._separate(query, key, values, inner) or self._packed(query, key, values, inner)
        if ends is None or not self._is_private(inner - {out}, out):
            return None
        sources, heads, width = ends
        if not self._merges(out, sources[0], heads * width):
            return None
        factor = scale * query_scale * key_scale
        return Attention(sources, heads, width, factor, mask, out, frozenset(inner))

    def _after(self, softmax: onnx.NodeProto, inner: set[str]) -> str | None:
        """Follow probabilities @ values, heads merged: Transpose and Reshape to three axes."""
        name = softmax.output[0]
        for kind in ("MatMul", "Transpose", "Reshape"):
            after = self.readers.get(name, [])
            if len(after) != 1 or after[0].op_type != kind or after[0].input[0] != name:
                return None
            if kind == "Transpose" and attribute(after[0], "perm") != _HEADS_OUT:
                return None
            name = after[0].output[0]
            inner.add(name)
        shape = self._shape(self.made_by[name])
        return name if shape is not None and len(shape) == 3 else None

    def _scores(self, name: str, inner: set[str]) -> tuple[str | None, str]:
        """Return the scores before the mask, and the mask."""
        node = self.made_by.get(name)
        if node is None or node.op_type != "Add":
            return name, ""
        inner.add(name)
        for index in (0, 1):
            scores = self.made_by.get(self._unscaled(node.input[index]))
            if scores is not None and scores.op_type == "MatMul":
                return node.input[index], node.input[1 - index]
        return None, ""

    def _unscaled(self, name: str) -> str:
        """Return the tensor before a multiplication by a stored number."""
        node = self.made_by.get(name)
        return node.input[0] if node is not None and self._factor(node) is not None else name

    def _scaled(self, name: str, inner: set[str]) -> tuple[onnx.NodeProto | None, float]:
        """Return what makes a tensor before a stored factor, and the factor."""
        node = self.made_by.get(name)
        factor = self._factor(node) if node is not None else None
        if node is None or factor is None:
            return node, 1.0
        inner.add(name)
        return self.made_by.get(node.input[0]), factor

    def _factor(self, node: onnx.NodeProto) -> float | None:
        """Return the number that a Mul or Div applies to its first input."""
        if node.op_type not in ("Mul", "Div") or node.input[1] not in self.stored:
            return None
        number = array(self.stored[node.input[1]])
        if number.size != 1 or float(number.reshape(())) == 0:
            return None
        value = float(number.reshape(()))
        return value if node.op_type == "Mul" else 1 / value

    def _separate(
        self, query: onnx.NodeProto, key: onnx.NodeProto, value: onnx.NodeProto, inner: set[str]
    ) -> tuple[tuple[str, ...], int, int] | None:
        """Three tensors, each split into heads by Reshape and Transpose."""
        sources, shapes, seen = [], [], set()
        for end, final in ((query, _HEADS_OUT), (key, _KEYS_OUT), (value, _HEADS_OUT)):
            node: onnx.NodeProto | None = end
            if end is key and attribute(end, "perm") == _KEYS_LAST:
                seen.add(end.output[0])
                node, final = self.made_by.get(end.input[0]), _HEADS_OUT
            if node is None or node.op_type != "Transpose":
                return None
            split = self.made_by.get(node.input[0])
            if split is None or attribute(node, "perm") != final:
                return None
            shape = self._split(split)
            if shape is None or len(shape) != 2:
                return None
            sources.append(split.input[0])
            shapes.append(shape)
            seen |= {node.output[0], split.output[0]}
        if len(set(shapes)) != 1:  # such as several queries that share one key
            return None
        inner |= seen
        heads, width = shapes[0]
        return tuple(sources), heads, width

    def _packed(
        self, query: onnx.NodeProto, key: onnx.NodeProto, value: onnx.NodeProto, inner: set[str]
    ) -> tuple[tuple[str, ...], int, int] | None:
        """One tensor split into (3, heads, width), the three taken apart by Slice and Squeeze."""
        seen: set[str] = set()
        if key.op_type == "Transpose" and attribute(key, "perm") == _KEYS_LAST:
            seen.add(key.output[0])
            key = self.made_by.get(key.input[0], key)
        sources, shapes = [], []
        for position, node in enumerate((query, key, value)):
            taken = self._taken(node, seen)
            if taken is None or taken[1] != position:
                return None
            turned = self.made_by.get(taken[0])
            if turned is None or attribute(turned, "perm") != _THREE_OUT:
                return None
            split = self.made_by.get(turned.input[0])
            shape = self._split(split) if split is not None else None
            if split is None or shape is None or len(shape) != 3:
                return None
            sources.append(split.input[0])
            shapes.append(shape)
            seen |= {turned.output[0], split.output[0]}
        if len(set(sources)) != 1 or len(set(shapes)) != 1 or shapes[0][0] != 3:
            return None
        inner |= seen
        return (sources[0],), shapes[0][1], shapes[0][2]

    def _split(self, node: onnx.NodeProto) -> tuple[int, ...] | None:
        """Return what a Reshape cuts the last of three axes into; None where it mixes others."""
        before = self.known.get(node.input[0], ())
        target = self._shape(node)
        if target is None or not self._keeps_rows(before, node.output[0], target):
            return None
        sizes = [size if size > 0 else 0 for size in target[2:]]
        if sizes.count(0) == 1 and isinstance(before[2], int):  # left to the runtime to divide
            sizes[sizes.index(0)] = before[2] // max(1, math.prod(size for size in sizes if size))
        return tuple(sizes) if min(sizes) > 0 else None

    def _merges(self, out: str, source: str, width: int) -> bool:
        """Whether the merged heads have the batch and the tokens of the queries' source."""
        target, before = self._shape(self.made_by[out]), self.known.get(source, ())
        # heads * width numbers a token, also where the source holds keys and values as well
        return target is not None and self._keeps_rows((*before[:2], width), out, target)

    def _keeps_rows(self, before: Shape, name: str, target: list[int]) -> bool:
        """Whether a Reshape to `name` leaves batch and tokens as they are; in a part, may do so."""
        after = self.known.get(name, ())
        if self.is_part:  # timed on made-up ranges, never served
            pairs = zip(before, (*after, *before[len(after) :]), strict=False)
            before = tuple(size if isinstance(size, int) else then for size, then in pairs)
        return keeps_rows(before, after, target)

    def _taken(self, node: onnx.NodeProto, seen: set[str]) -> tuple[str, int] | None:
        """Return (tensor, index) of an element of the first axis."""
        if node.op_type == "Gather" and attribute(node, "axis", 0) == 0:
            index = self._numbers(node.input[1])
            seen.add(node.output[0])
            return (node.input[0], int(index.reshape(()))) if _is_one(index) else None
        if node.op_type != "Squeeze":
            return None
        cut = self.made_by.get(node.input[0])
        if cut is None or cut.op_type != "Slice":
            return None
        start, end, axes = (self._numbers(name) for name in cut.input[1:4])
        if not (_is_one(start) and _is_one(end) and _is_one(axes)):
            return None
        first = int(start.reshape(()))
        if int(axes.reshape(())) != 0 or int(end.reshape(())) != first + 1:
            return None
        seen |= {node.output[0], cut.output[0]}
        return cut.input[0], first

    def _numbers(self, name: str) -> np.ndarray:
        """Return a stored tensor, empty where it is not stored."""
        return array(self.stored[name]) if name in self.stored else np.zeros(0, np.int64)

    def _shape(self, node: onnx.NodeProto) -> list[int] | None:
        """Return a Reshape's target; -1 for sizes that are known at run time only."""
        if node.op_type != "Reshape":
            return None
        if node.input[1] in self.stored:
            return [int(size) for size in array(self.stored[node.input[1]])]
        made = self.made_by.get(node.input[1])
        if made is None or made.op_type != "Concat":
            return None
        sizes: list[int] = []
        for name in made.input:
            known = self._numbers(name)
            sizes += [int(size) for size in known.reshape(-1)] if known.size else [-1]
        return sizes

    def _is_private(self, inner: set[str], out: str) -> bool:
        """Whether only the attention itself reads its inner tensors."""
        own = inner | {out}
        return not (inner & self.outputs) and all(
            own.issuperset(reader.output) for name in inner for reader in self.readers.get(name, [])
        )


def _is_one(numbers: np.ndarray) -> bool:
    return numbers.size == 1
