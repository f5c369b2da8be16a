"""Write the FP16 form of an FP32 graph, for GPUs: half weights and products, float32 at the edges.

Inputs and outputs keep their types, so a caller cannot tell the files apart. Sums over many
numbers and functions that overflow early (normalisation, softmax, means, powers) stay float32
between two casts; so does what is rounded to whole numbers (positions in a table), and whatever
half numbers cannot hold, by its constants or, where a feed is given, by the activations that it
makes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from exports.onnxfile import (
    GraphError,
    array,
    drop_unused,
    initializers,
    load_model,
    replace_nodes,
    save_model,
)
from exports.runtime import run_logits, session

NORMALISATIONS = ("LayerNormalization", "Softmax")  # kernels that accumulate in float32 themselves
FLOAT_OPERATORS = (
    *NORMALISATIONS,
    *("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LpNormalization"),
    *("LogSoftmax", "ReduceMean", "ReduceSum", "ReduceL2", "ReduceSumSquare", "GlobalAveragePool"),
    *("Pow", "Exp", "Log", "Sqrt", "Reciprocal", "CumSum"),
    *("Resize", "ConstantOfShape", "Range", "EyeLike"),  # their types are arguments
)
_ROUNDERS = ("Floor", "Ceil", "Round")
_INTEGERS = (
    *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
    *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
)
_LARGEST = float(np.finfo(np.float16).max)  # 65504
_SMALLEST = 2.0**-24  # above zero
_INFINITE = 1e30  # a constant beyond it masks something out: it becomes the largest half number
_MARGIN = 8.0  # activations of other inputs may be larger than the feed's by so much
_ROWS = 4  # rows of one run whose activations are all in memory


class HalfError(GraphError):
    """A graph that half precision does not hold; the message is one line."""


@dataclass(frozen=True)
class HalfReport:
    """What became of a conversion.

    Attributes:
        half, kept: nodes that compute in half precision, and float ones left in float32.
        too_large: activations that the feed drove past what half numbers hold with a margin.
        max_abs, agreement: largest logit gap to the FP32 file on this host's CPU, and share of
            examples with the same label; None without a feed.
    """

    half: int
    kept: int
    too_large: tuple[str, ...] = ()
    max_abs: float | None = None
    agreement: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain types."""
        return {**asdict(self), "too_large": list(self.too_large)}


def convert_half(
    fp32: Path,
    out: Path,
    *,
    feed: Mapping[str, np.ndarray] | None = None,
    float_operators: Collection[str] = FLOAT_OPERATORS,
) -> HalfReport:
    """Write the FP16 form of an FP32 file.

    Args:
        fp32: an unquantized graph.
        out: the file to write; replaced in one step.
        feed: a few examples, on which no activation may overflow and every logit must be finite.
        float_operators: operators left in float32; CUDA's LayerNormalization and Softmax
            accumulate in float32 by themselves, so `NORMALISATIONS` may be taken out for speed
            where the logits on CUDA are compared afterwards.

    Raises:
        HalfError: a weight beyond the largest half number, a quantized graph, control flow, or
            logits that are not finite.
    """
    model = load_model(fp32)
    _Converter.check(model)
    too_large: tuple[str, ...] = ()
    if feed is not None:
        peaks = activation_peaks(fp32, feed)
        too_large = tuple(name for name, peak in peaks.items() if not peak < _LARGEST / _MARGIN)
    counts = _Converter(model, set(float_operators), too_large).write()
    drop_unused(model)
    save_model(model, out)
    if feed is None:
        return HalfReport(*counts)
    gap, agreement = _compare(fp32, out, feed)
    return HalfReport(*counts, too_large, gap, agreement)


def activation_peaks(path: Path, feed: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the largest magnitude of every float activation of an FP32 graph on a feed."""
    model = load_model(path)
    types = _types(model)
    made = [name for node in model.graph.node for name in node.output if name]
    names = [name for name in made if types.get(name) == TensorProto.FLOAT]
    existing = {value.name for value in model.graph.output}
    for name in names:
        if name not in existing:
            value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            model.graph.output.append(value)
    peaks = dict.fromkeys(names, 0.0)
    with TemporaryDirectory() as folder:
        spy_path = Path(folder) / "spy.onnx"
        onnx.save(model, str(spy_path))
        spy = session(spy_path)
        rows = len(next(iter(feed.values())))
        for start in range(0, rows, _ROWS):
            part = {name: values[start : start + _ROWS] for name, values in feed.items()}
            for name, values in zip(names, spy.run(names, part), strict=True):
                # a mask's minus infinity is no overflow: softmax wants it
                finite = np.abs(values[np.isfinite(values) & (np.abs(values) < _INFINITE)])
                peaks[name] = max(peaks[name], float(finite.max(initial=0.0)))
    return peaks


def _compare(fp32: Path, half: Path, feed: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Return (largest logit gap, share of equal labels); raise where a logit is not finite."""
    exact, got = run_logits(session(fp32), feed), run_logits(session(half), feed)
    if not np.isfinite(got).all():
        raise HalfError(
            f"{half}: logits are not finite in half precision; serve the FP32 file on the GPU"
        )
    agreement = float((exact.argmax(axis=1) == got.argmax(axis=1)).mean())
    return float(np.abs(exact - got).max()), agreement


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of every tensor that inference reaches."""
    inferred = shape_inference.infer_shapes(model).graph
    types = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        types[value.name] = value.type.tensor_type.elem_type
    return types


class _Converter:
    """Rewrites one graph in place; every tensor has one type of its own and casts where needed."""

    def __init__(
        self, model: onnx.ModelProto, float_operators: set[str], too_large: Collection[str]
    ) -> None:
        self.model = model
        _constants_to_initializers(model)
        self.types = _types(model)
        self.stored = initializers(model)
        self.float_operators, self.delicate = float_operators, set(too_large)
        self.whole = _behind_integers(model, self.types)
        self.outputs = {value.name for value in model.graph.output}
        # (tensor, type) -> its name in the written graph
        self.named: dict[tuple[str, int], str] = {
            (value.name, TensorProto.FLOAT): value.name for value in model.graph.input
        }
        untyped = [n for node in model.graph.node for n in node.output if n not in self.types and n]
        if untyped:
            raise HalfError(f"tensor {untyped[0]!r}: its type is unknown; convert the FP32 file")

    @staticmethod
    def check(model: onnx.ModelProto) -> None:
        """Refuse graphs that are not plain FP32 ones."""
        for node in model.graph.node:
            if "Quantize" in node.op_type or "Integer" in node.op_type or "Bits" in node.op_type:
                raise HalfError(
                    f"node {node.name or node.op_type!r}: the graph is quantized; convert the "
                    "FP32 file"
                )
            if any(item.HasField("g") or item.graphs for item in node.attribute):
                raise HalfError(f"node {node.name or node.op_type!r}: holds a graph of its own")

    def write(self) -> tuple[int, int]:
        """Rewrite the nodes; return how many compute in half and in float32."""
        nodes: list[onnx.NodeProto] = []
        counts = {TensorProto.FLOAT16: 0, TensorProto.FLOAT: 0}
        for node in self.model.graph.node:
            if not any(self._is_float(name) for name in (*node.input, *node.output)):
                nodes.append(node)
                continue
            kind = TensorProto.FLOAT if self._stays(node) else TensorProto.FLOAT16
            counts[kind] += 1
            for index, name in enumerate(node.input):
                if self._is_float(name):
                    nodes += self._casts(name, kind)
                    node.input[index] = self.named[name, kind]
            if kind == TensorProto.FLOAT16:
                _retype(node)
            nodes.append(node)
            for index, name in enumerate(list(node.output)):
                if not self._is_float(name):
                    continue
                own = name
                if kind == TensorProto.FLOAT16 and name in self.outputs:
                    own = node.output[index] = f"{name}_half"
                self.named[name, kind] = own
                if name in self.outputs:  # the graph's own outputs keep name and type
                    nodes += self._casts(name, TensorProto.FLOAT)
        replace_nodes(self.model, nodes)
        del self.model.graph.value_info[:]
        return counts[TensorProto.FLOAT16], counts[TensorProto.FLOAT]

    def _is_float(self, name: str) -> bool:
        """Whether a tensor holds float32 numbers in the graph as it was."""
        return bool(name) and self.types.get(name) == TensorProto.FLOAT

    def _stays(self, node: onnx.NodeProto) -> bool:
        """Whether a node computes in float32."""
        if node.op_type in self.float_operators or node.domain not in ("", "ai.onnx"):
            return True
        if self.delicate & {*node.input, *node.output} or self.whole.intersection(node.output):
            return True
        constants = [name for name in node.input if name in self.stored and self._is_float(name)]
        if any(_vanishes(array(self.stored[name])) for name in constants):
            self.delicate |= set(node.output)  # what reads the sum with an epsilon divides by it
            return True
        return False

    def _casts(self, name: str, kind: int) -> Iterator[onnx.NodeProto]:
        """Yield the node that makes a tensor of the wanted type, where it is not there yet."""
        if (name, kind) in self.named:
            return
        if name in self.stored:
            if kind == TensorProto.FLOAT:
                self.named[name, kind] = name
                return
            made = f"{name}_half"
            tensor = numpy_helper.from_array(_halved(name, array(self.stored[name])), made)
            self.model.graph.initializer.append(tensor)
            self.named[name, kind] = made
            return
        other = TensorProto.FLOAT if kind == TensorProto.FLOAT16 else TensorProto.FLOAT16
        source = self.named.get((name, other))
        if source is None:
            raise HalfError(f"tensor {name!r}: is read before it is made")
        made = f"{name}_half" if kind == TensorProto.FLOAT16 else f"{name}_float"
        made = name if kind == TensorProto.FLOAT and name in self.outputs else made
        self.named[name, kind] = made
        yield helper.make_node("Cast", [source], [made], f"{made}/cast", to=kind)


def _behind_integers(model: onnx.ModelProto, types: Mapping[str, int]) -> set[str]:
    """Return the outputs of nodes whose float numbers are made into whole ones, these nodes too.

    A position in a table (a bucket of relative positions) is often computed by a logarithm; a half
    number on the other side of a step is another row of the table. The walk goes back to where the
    numbers come from whole ones or into the graph.
    """
    found: set[str] = set()
    wanted: set[str] = set()  # float tensors that are made whole further down
    for node in reversed(model.graph.node):  # topological: readers come first here
        to = next((item.i for item in node.attribute if item.name == "to"), 0)
        rounds = node.op_type in _ROUNDERS or (node.op_type == "Cast" and to in _INTEGERS)
        if rounds or wanted.intersection(node.output):
            floats = [name for name in node.input if types.get(name) == TensorProto.FLOAT]
            wanted.update(floats)
            if floats or any(types.get(name) == TensorProto.FLOAT for name in node.output):
                found.update(node.output)
    return found


def _constants_to_initializers(model: onnx.ModelProto) -> None:
    """Store what Constant nodes hold, so that there is one kind of constant."""
    nodes = []
    for node in model.graph.node:
        values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        if node.op_type != "Constant" or not {"value", "value_float", "value_floats"} & set(values):
            nodes.append(node)
            continue
        tensor = TensorProto()
        if "value" in values:
            tensor.CopyFrom(values["value"])
            tensor.name = node.output[0]
        else:
            (number,) = values.values()
            tensor = numpy_helper.from_array(np.asarray(number, np.float32), node.output[0])
        model.graph.initializer.append(tensor)
    replace_nodes(model, nodes)


def _retype(node: onnx.NodeProto) -> None:
    """Make a Cast to float32 one to half."""
    for item in node.attribute:
        if node.op_type == "Cast" and item.name == "to" and item.i == TensorProto.FLOAT:
            item.i = TensorProto.FLOAT16


def _vanishes(values: np.ndarray) -> bool:
    """Whether a single number (an epsilon) becomes zero in half precision."""
    return values.size == 1 and 0 < float(np.abs(values).max()) < _SMALLEST


def _halved(name: str, values: np.ndarray) -> np.ndarray:
    """Return half numbers; what stands for infinity becomes the largest one.

    Raises:
        HalfError: an ordinary number is beyond the largest half number.
    """
    size = np.abs(values)
    beyond = (size > _LARGEST) & (size < _INFINITE)
    if beyond.any() or np.isnan(values).any():
        worst = float(size[beyond].max(initial=0.0)) or float("nan")
        raise HalfError(
            f"tensor {name!r}: holds {worst:.4g}, half precision ends at {_LARGEST:.0f}; serve the "
            "FP32 file on the GPU"
        )
    return np.clip(values, -_LARGEST, _LARGEST).astype(np.float16)
