"""Look inside a running graph: every tensor that it makes, on a few examples.

A graph may also be run with some of its tensors given: what reads them gets the given numbers, and
what makes them still shows its own. So an error that a node adds can be told from one it inherits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from exports.onnxfile import (
    INTEGER_PRODUCTS,
    Layer,
    array,
    attribute,
    initializers,
    layers,
    packed_integers,
    producers,
)
from exports.runtime import SessionError, session

Tensors = dict[str, np.ndarray]
_GIVEN = "/given"
_TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.float64): TensorProto.DOUBLE,
}


def spied(
    model: onnx.ModelProto,
    feed: Mapping[str, np.ndarray],
    given: Mapping[str, np.ndarray] | None = None,
    *,
    threads: int = 1,
    provider: str = "cpu",
) -> Tensors:
    """Run a graph and return every tensor that its nodes make.

    Kept tensors cannot be fused away, so the runtime computes node by node what the file says; a
    fault of the runtime's own fusions does not show here.

    Args:
        model: the graph; left as it is.
        feed: arrays by input name; inputs that the graph does not take are left out.
        given: float tensors by name, in the shape they have in the graph, that their readers get
            instead of what is computed.
        threads, provider: of the session.

    Raises:
        SessionError: the graph does not load, or the provider is not there.
    """
    spy = onnx.ModelProto()
    spy.CopyFrom(model)
    graph, given = spy.graph, given or {}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in given:
                node.input[index] = f"{name}{_GIVEN}"
    for name, values in given.items():
        shape = [None] * values.ndim
        graph.input.append(
            helper.make_tensor_value_info(f"{name}{_GIVEN}", _TYPES[values.dtype], shape)
        )
    there = {value.name for value in graph.output}
    made = [name for node in graph.node for name in node.output if name]
    # without a type: the runtime infers what a name alone asks for
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in made if name not in there)
    opened = session(spy.SerializeToString(), threads, provider)
    inputs = {value.name for value in opened.get_inputs()}
    fed = {**feed, **{f"{name}{_GIVEN}": x for name, x in given.items()}}
    try:
        results = opened.run(made, {name: x for name, x in fed.items() if name in inputs})
    except Exception as problem:  # pybind raises one type per status code
        raise SessionError(
            f"a graph with all tensors kept: {str(problem).splitlines()[0]}"
        ) from None
    return dict(zip(made, results, strict=True))


def constants(model: onnx.ModelProto) -> Tensors:
    """Return the float tensors that a graph stores, by name."""
    return {
        name: array(tensor)
        for name, tensor in initializers(model).items()
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
    }


def read_weights(model: onnx.ModelProto) -> dict[str, tuple[str, np.ndarray]]:
    """Return what integer products multiply by, by the product's output.

    A weight that a DequantizeLinear turns into floats is a tensor of its own and not listed here.

    Returns:
        (initializer of the integers, float32 numbers that they stand for, laid out as (in, out)).
    """
    stored, found = initializers(model), {}
    for layer in layers(model):
        read = _READERS.get(layer.node.op_type)
        if read is not None:
            found[layer.node.output[0]] = (layer.weight, read(layer, stored))
    return found


def _integer_product(layer: Layer, stored: Mapping[str, onnx.TensorProto]) -> np.ndarray:
    """Integers (in, out) times one scale a column."""
    scale = layer.node.input[INTEGER_PRODUCTS[layer.node.op_type]]
    return array(stored[layer.weight]).astype(np.float32) * array(stored[scale])


def _block_product(layer: Layer, stored: Mapping[str, onnx.TensorProto]) -> np.ndarray:
    """Packed integers times a scale a block of each row; turned to (in, out)."""
    integers = packed_integers(layer.node, array(stored[layer.weight]))  # (out, in)
    scale = array(stored[layer.node.input[2]]).reshape(len(integers), -1)
    block = int(attribute(layer.node, "block_size", 32))  # type: ignore[call-overload]
    spread = scale.repeat(block, axis=1)[:, : integers.shape[1]]
    return (integers * spread).T


_READERS: dict[str, Callable[[Layer, Mapping[str, onnx.TensorProto]], np.ndarray]] = {
    **dict.fromkeys(INTEGER_PRODUCTS, _integer_product),
    "MatMulNBits": _block_product,
}


def read_integers(model: onnx.ModelProto, tensors: Tensors) -> Tensors:
    """Return the floats that the 8-bit activations of a run stand for, by their names.

    A quantizer's integers are read with its own scale and zero point, whatever reads them later.
    """
    stored, found = initializers(model), {}
    made_by = producers(model)
    for name, values in tensors.items():
        node = made_by[name]
        if node.op_type != "QuantizeLinear" or not all(x in stored for x in node.input[1:]):
            continue
        scale = array(stored[node.input[1]])
        zero = array(stored[node.input[2]]).astype(np.int32) if len(node.input) > 2 else 0
        if scale.size == 1:  # activations have one grid each
            found[name] = ((values.astype(np.int32) - zero) * scale).astype(np.float32)
    return found
