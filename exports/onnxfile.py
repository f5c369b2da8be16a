"""Read and write ONNX files, and see a graph as its weighted layers.

Every module of this room looks at a graph through `layers`, which finds the Linear and Conv layers
of an FP32 graph and of its QDQ form alike, so that a count, a match or a placement is defined once.
"""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import EncodeError
from onnx import numpy_helper

LARGEST_BYTES = 2**31 - 1  # of one file: what protobuf can encode
LINEAR_OPS = ("MatMul", "Gemm")
WEIGHTED_OPS = ("Conv", *LINEAR_OPS)
# products that read stored integers (in, out) as input 1: where their scales (out,) are
INTEGER_PRODUCTS = {"MatMulIntegerToFloat": 3, "DynamicQuantizeMatMul": 2}


class GraphError(ValueError):
    """An ONNX graph that is not what the caller needs; the message is one line."""


@dataclass(frozen=True)
class Layer:
    """One Linear or Conv node whose weight is stored in the file."""

    node: onnx.NodeProto
    weight: str  # the initializer that holds the numbers (the integers in a QDQ graph)
    rows_axis: int  # the axis of that initializer that counts output channels
    is_head: bool

    @property
    def is_conv(self) -> bool:
        """Whether the node is a convolution."""
        return self.node.op_type == "Conv"


def attribute(node: onnx.NodeProto, name: str, default: object = None) -> object:
    """Return an attribute's value, or `default` where the node does not carry it."""
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default


def initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return the graph's stored tensors by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def array(tensor: onnx.TensorProto) -> np.ndarray:
    """Return a stored tensor's numbers; 4-bit integers come back as int8 or uint8."""
    values = numpy_helper.to_array(tensor)
    if tensor.data_type == onnx.TensorProto.INT4:
        return values.astype(np.int8)
    if tensor.data_type == onnx.TensorProto.UINT4:
        return values.astype(np.uint8)
    return values


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Return the node that makes each tensor."""
    return {name: node for node in model.graph.node for name in node.output if name}


def consumers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """Return the nodes that read each tensor, in graph order."""
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            if name:
                readers[name].append(node)
    return readers


def _stored_weight(
    name: str, made_by: dict[str, onnx.NodeProto], stored: dict[str, onnx.TensorProto]
) -> str | None:
    """Return the initializer behind a weight input, seeing through one DequantizeLinear."""
    node = made_by.get(name)
    if node is not None and node.op_type == "DequantizeLinear":
        name = node.input[0]
    return name if name in stored else None


def layers(model: onnx.ModelProto) -> list[Layer]:
    """Return the graph's Linear and Conv layers with stored weights, in graph order.

    The head is the weighted layer that the first output reads last, going back through nodes
    without weights: the classifier of every network that ends in one.
    """
    stored, made_by = initializers(model), producers(model)
    found: list[tuple[onnx.NodeProto, str, int]] = []
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":  # its weight is packed: see `packed_integers`
            found.append((node, node.input[1], 0))
            continue
        if node.op_type in INTEGER_PRODUCTS and node.input[1] in stored:
            found.append((node, node.input[1], 1))
            continue
        if node.op_type not in WEIGHTED_OPS or len(node.input) < 2:
            continue
        weight = _stored_weight(node.input[1], made_by, stored)
        if weight is None:
            continue
        rank = len(stored[weight].dims)
        if node.op_type == "Conv" and rank >= 3:
            found.append((node, weight, 0))
        elif node.op_type == "Gemm" and rank == 2:
            found.append((node, weight, 0 if attribute(node, "transB", 0) else 1))
        elif node.op_type == "MatMul" and rank == 2:
            found.append((node, weight, 1))
    head = _head_output(model, {node.output[0] for node, _, _ in found}, made_by)
    return [Layer(node, weight, axis, node.output[0] == head) for node, weight, axis in found]


def packed_integers(node: onnx.NodeProto, packed: np.ndarray) -> np.ndarray:
    """Return what a MatMulNBits node's weight stands for before scaling, int8 (out, in).

    Args:
        node: the node; without zero points its integers are centred on 2^(bits - 1).
        packed: uint8 (out, blocks, bytes), low bits first, the last block padded.
    """
    bits, columns = int(attribute(node, "bits", 4)), int(attribute(node, "K", 0))  # type: ignore[call-overload]
    rows = packed.reshape(len(packed), -1)
    parts = [(rows >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    integers = np.stack(parts, axis=-1).reshape(len(packed), -1)[:, :columns]
    return (integers.astype(np.int16) - 2 ** (bits - 1)).astype(np.int8)


def _head_output(
    model: onnx.ModelProto, weighted: set[str], made_by: dict[str, onnx.NodeProto]
) -> str | None:
    """Return the output of the weighted node nearest to the graph's first output."""
    queue = [model.graph.output[0].name] if model.graph.output else []
    seen: set[str] = set()
    while queue:  # breadth first, so that the nearest weighted node is met first
        name = queue.pop(0)
        if name in weighted:
            return name
        node = made_by.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        queue.extend(node.input)
    return None


def load_model(path: Path) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises:
        GraphError: the file is missing or is not an ONNX graph.
    """
    try:
        return onnx.load(str(path))
    except FileNotFoundError:
        raise GraphError(f"{path}: no such ONNX file") from None
    except Exception as problem:  # protobuf raises its own types, one per implementation
        raise GraphError(f"{path}: not a readable ONNX file ({problem})") from None


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Check a graph and write it in one step: a reader sees the whole file or none.

    Raises:
        GraphError: the graph is larger than a file can be, or is not valid.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        onnx.save(model, str(temporary))
        # Contrib operators are unknown to the checker; it skips them and checks the rest.
        onnx.checker.check_model(str(temporary), full_check=False)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except (EncodeError, ValueError, onnx.checker.ValidationError) as problem:
        lines = str(problem).strip().splitlines() or [type(problem).__name__]
        raise GraphError(f"{path}: the graph cannot be written: {lines[0]}") from problem
    finally:
        temporary.unlink(missing_ok=True)


def replace_nodes(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Make `nodes` (in topological order, new ones and the graph's own) the graph's nodes."""
    kept = []
    for node in nodes:
        copied = onnx.NodeProto()
        copied.CopyFrom(node)  # the graph's own die with the list that is cleared below
        kept.append(copied)
    del model.graph.node[:]
    model.graph.node.extend(kept)


def drop_dead_nodes(model: onnx.ModelProto) -> None:
    """Remove nodes that no output depends on, and the stored tensors that go with them."""
    needed = {value.name for value in model.graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(model.graph.node):  # in topological order, so readers come first here
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    replace_nodes(model, reversed(kept))
    drop_unused(model)


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove stored tensors that no node reads and no output names."""
    graph = model.graph
    used = {name for node in graph.node for name in node.input} | {out.name for out in graph.output}
    keep = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(keep)


def require_opset(model: onnx.ModelProto, domain: str, version: int = 1) -> None:
    """Declare an operator domain in the file when it is not there yet."""
    if domain not in {entry.domain for entry in model.opset_import}:
        model.opset_import.append(onnx.helper.make_opsetid(domain, version))


def fresh_names(model: onnx.ModelProto, wanted: Iterable[str]) -> list[str]:
    """Return the wanted names that already exist in the graph (empty when all are free)."""
    taken = {tensor.name for tensor in model.graph.initializer}
    taken |= {name for node in model.graph.node for name in (*node.input, *node.output)}
    return [name for name in wanted if name in taken]
