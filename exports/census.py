"""Count parameters, nonzeros and bytes in the exported file itself, never in masks or in torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from exports.embeddings import SCALE_SUFFIX, unpack
from exports.graph import GraphError
from exports.onnxfile import (
    INTEGER_PRODUCTS,
    Layer,
    array,
    attribute,
    consumers,
    initializers,
    layers,
    load_model,
    packed_integers,
    producers,
)

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


def census(
    path: Path, prunable: Mapping[str, np.ndarray] | Iterable[str] | None = None
) -> dict[str, int]:
    """Count what an ONNX file stores.

    Parameters are weights, biases and embeddings, floats and integers alike; scales, zero points,
    shapes, running statistics and single numbers are not. An integer counts as zero when it stands
    for zero. A file does not tell learnt numbers from others: what the tracer computed once and
    stored (the masks of Swin's shifted windows, a table of sines) counts as well.

    Args:
        path: an FP32 or a quantized file.
        prunable: which layers' weights count as prunable: weights by name (found by their
            numbers), or initializer names as in the FP32 file; by default every Linear and Conv
            except the head, as the pruning literature counts.

    Returns:
        {"parameters", "nonzero", "prunable", "prunable_nonzero", "bytes"}.

    Raises:
        GraphError: a prunable layer is not in the file.
    """
    model = load_model(path)
    stored = initializers(model)
    parameters = nonzero = 0
    for name in _weight_like(model):
        count, filled = _count(model, stored[name])
        parameters, nonzero = parameters + count, nonzero + filled
    prunable_names = _prunable(model, prunable)
    counts = [_count(model, stored[name]) for name in prunable_names]
    return {
        "parameters": parameters,
        "nonzero": nonzero,
        "prunable": sum(count for count, _ in counts),
        "prunable_nonzero": sum(filled for _, filled in counts),
        "bytes": Path(path).stat().st_size,
    }


def _weight_like(model: onnx.ModelProto) -> list[str]:
    """Return the stored tensors that hold learnt numbers, in file order."""
    readers = consumers(model)
    found = []
    for tensor in model.graph.initializer:
        if int(np.prod(tensor.dims)) <= 1 or tensor.name.endswith(SCALE_SUFFIX):
            continue  # epsilons and factors of the graph; scales of a table
        roles = [
            (node, index)
            for node in readers[tensor.name]
            for index, name in enumerate(node.input)
            if name == tensor.name
        ]
        if tensor.data_type in _FLOATS:
            scales = [
                (node.op_type in _QUANTIZERS and index > 0)
                or (node.op_type == "MatMulNBits" and index == 2)
                or INTEGER_PRODUCTS.get(node.op_type) == index
                or (node.op_type == "GatherBlockQuantized" and index > 1)
                or (node.op_type == "BatchNormalization" and index > 2)  # running statistics
                for node, index in roles
            ]
            learnt = not all(scales) if roles else True
        else:  # integers count only as the data of a dequantizer or of a table
            learnt = any(
                index == 1 and (node.op_type == "MatMulNBits" or node.op_type in INTEGER_PRODUCTS)
                for node, index in roles
            ) or any(
                index == 0
                and (
                    node.op_type in ("DequantizeLinear", "GatherBlockQuantized")
                    or (node.op_type == "Gather" and tensor.data_type == TensorProto.INT8)
                )
                for node, index in roles
            )
        if learnt:
            found.append(tensor.name)
    return found


def _count(model: onnx.ModelProto, tensor: onnx.TensorProto) -> tuple[int, int]:
    """Return (elements, elements that do not stand for zero)."""
    for node in model.graph.node:
        if node.op_type == "MatMulNBits" and node.input[1] == tensor.name:
            values = packed_integers(node, array(tensor))
            return values.size, int(np.count_nonzero(values))
        if tensor.name not in node.input[:1]:
            continue
        if node.op_type == "GatherBlockQuantized" and tensor.data_type == TensorProto.UINT8:
            values = unpack(tensor, int(attribute(node, "bits", 4)))  # type: ignore[call-overload]
            return values.size, int(np.count_nonzero(values))
        if node.op_type == "DequantizeLinear" and len(node.input) > 2:
            values = array(tensor)
            zero = _zero_point(model, node, values)
            return values.size, int(np.count_nonzero(values.astype(np.int64) != zero))
    values = array(tensor)
    return values.size, int(np.count_nonzero(values))


def _zero_point(model: onnx.ModelProto, node: onnx.NodeProto, values: np.ndarray) -> np.ndarray:
    """Return a dequantizer's zero point, shaped to broadcast over its data."""
    tensor = initializers(model).get(node.input[2])
    zero = array(tensor).astype(np.int64) if tensor is not None else np.zeros((), np.int64)
    if zero.ndim == 0 or zero.size == 1:
        return zero.reshape(())
    shape = [1] * values.ndim
    axis = attribute(node, "axis", 1)
    shape[int(axis)] = -1  # type: ignore[call-overload]
    return zero.reshape(shape)


def _prunable(
    model: onnx.ModelProto, wanted: Mapping[str, np.ndarray] | Iterable[str] | None
) -> list[str]:
    """Return the initializers of the prunable layers, each once."""
    by_weight = {layer.weight: layer for layer in layers(model)}
    if wanted is None:
        heads = {name for name, layer in by_weight.items() if layer.is_head}
        return [name for name in by_weight if name not in heads]
    if isinstance(wanted, Mapping):
        return _by_content(model, by_weight, wanted)
    found = []
    for name in wanted:
        chosen = next((n for n in (name, f"{name}_quantized") if n in by_weight), None)
        if chosen is None:
            raise GraphError(f"prunable layer {name!r} is not a Linear or Conv weight of the file")
        found.append(chosen)
    return list(dict.fromkeys(found))


def _by_content(
    model: onnx.ModelProto, by_weight: Mapping[str, Layer], wanted: Mapping[str, np.ndarray]
) -> list[str]:
    """Return the initializers whose values, dequantized, are the given torch weights."""
    values: dict[tuple[int, ...], list[tuple[str, np.ndarray]]] = {}
    for name, layer in by_weight.items():
        numbers = _dequantized(model, name)
        numbers = numbers.T if layer.rows_axis == 1 else numbers
        values.setdefault(numbers.shape, []).append((name, numbers))
    found: list[str] = []
    for layer_name, weight in wanted.items():
        same = [n for n, v in values.get(tuple(weight.shape), []) if np.array_equal(v, weight)]
        if not same:
            raise GraphError(f"prunable layer {layer_name!r}: its weight is not in the file")
        found.append(next((name for name in same if name not in found), same[0]))
    return list(dict.fromkeys(found))


def _dequantized(model: onnx.ModelProto, name: str) -> np.ndarray:
    """Return a weight's float values, whether stored so or as integers on a symmetric grid."""
    stored, made_by = initializers(model), producers(model)
    values = array(stored[name])
    if np.issubdtype(values.dtype, np.floating):
        return values
    for node in made_by.values():
        if node.op_type == "MatMulNBits" and node.input[1] == name:
            block = int(attribute(node, "block_size", 32))  # type: ignore[call-overload]
            integers = packed_integers(node, values).astype(np.float32)
            steps = array(stored[node.input[2]]).reshape(len(integers), -1).repeat(block, axis=1)
            return integers * steps[:, : integers.shape[1]]
        if node.op_type in INTEGER_PRODUCTS and node.input[1] == name:
            return values * array(stored[node.input[INTEGER_PRODUCTS[node.op_type]]])
        if node.op_type == "DequantizeLinear" and node.input[0] == name:
            scale = array(stored[node.input[1]])
            shape = [1] * values.ndim
            shape[int(attribute(node, "axis", 1))] = -1  # type: ignore[call-overload]
            zero = _zero_point(model, node, values)
            scaled = (values.astype(np.int64) - zero).astype(np.float32) * scale.reshape(shape)
            return scaled.astype(np.float32)
    raise GraphError(f"tensor {name!r}: integers without a dequantizer")
