"""Write each Linear of a quantized graph as one operator: product, scales and bias together.

The QDQ form leaves a Linear as DequantizeLinear, MatMul, Add. ONNX Runtime makes the first two one
integer product but not the third, and then joins that Add to the Gelu after it as BiasGelu, which
takes longer (32 tokens, width 1536, one thread: 47 us) than a Gelu alone (28 us) behind a product
that adds the bias on its way out, which costs nothing. Numbers are the same to the last bit.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx
from onnx import helper

from exports.embeddings import MICROSOFT
from exports.grids import QuantizationError
from exports.onnxfile import (
    INTEGER_PRODUCTS,
    array,
    consumers,
    drop_dead_nodes,
    initializers,
    layers,
    producers,
    replace_nodes,
    require_opset,
)

Ranges = Literal["static", "dynamic"]


def fuse_linears(model: onnx.ModelProto, ranges: Ranges = "static") -> int:
    """Turn every quantized MatMul of a QDQ graph, with its bias, into one operator, in place.

    Args:
        model: a graph that `quantize_qdq` wrote; a Gemm (the head) and convolutions stay.
        ranges: 'static' reads the calibrated 8-bit tensor (MatMulIntegerToFloat); 'dynamic' reads
            the float one and finds its range at every call (DynamicQuantizeMatMul).

    Returns:
        How many products were rewritten.
    """
    made_by, readers, stored = producers(model), consumers(model), initializers(model)
    outputs = {value.name for value in model.graph.output}
    products: dict[str, onnx.NodeProto] = {}  # by the output that they make
    swallowed: set[str] = set()
    for layer in layers(model):
        weight, data = made_by.get(layer.node.input[1]), made_by.get(layer.node.input[0])
        if layer.node.op_type != "MatMul" or weight is None or data is None:
            continue
        if data.op_type != "DequantizeLinear" or not _is_symmetric(weight, stored):
            continue
        out, bias = layer.node.output[0], ""
        after = readers.get(out, [])
        if len(after) == 1 and after[0].op_type == "Add" and out not in outputs:
            bias = next((name for name in after[0].input if name != out), "")
            if bias in stored and tuple(stored[bias].dims) == (stored[layer.weight].dims[1],):
                swallowed.add(out)
                out = after[0].output[0]
            else:
                bias = ""
        products[out] = _product(out, data, weight, bias, ranges, made_by)
    replace_nodes(
        model,
        [
            products.get(node.output[0], node)
            for node in model.graph.node
            if node.output[0] not in swallowed
        ],
    )
    if products:
        require_opset(model, MICROSOFT)
    drop_dead_nodes(model)
    return len(products)


def _is_symmetric(weight: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> bool:
    """Whether a weight's dequantizer has no offset, so that the product needs none."""
    if len(weight.input) < 3:
        return True
    zero = stored.get(weight.input[2])
    return zero is not None and not np.any(array(zero))


def _product(
    out: str,
    data: onnx.NodeProto,
    weight: onnx.NodeProto,
    bias: str,
    ranges: Ranges,
    made_by: dict[str, onnx.NodeProto],
) -> onnx.NodeProto:
    """Return the one operator; a tensor that exists in 8 bits only has no range to find."""
    quantizer = made_by.get(data.input[0])
    if ranges == "dynamic" and quantizer is not None and quantizer.op_type == "QuantizeLinear":
        inputs = [quantizer.input[0], weight.input[0], weight.input[1], "", bias]
        kind = "DynamicQuantizeMatMul"
    else:
        integers, step, zero = data.input
        inputs = [integers, weight.input[0], step, weight.input[1], zero, "", bias]
        kind = "MatMulIntegerToFloat"
    return helper.make_node(kind, inputs, [out], f"{out}/product", domain=MICROSOFT)


def stored_grids(model: onnx.ModelProto) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return (integers, scales) of every 8-bit layer by the initializer of its integers."""
    stored, made_by = initializers(model), producers(model)
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for layer in layers(model):
        if stored[layer.weight].data_type != onnx.TensorProto.INT8:
            continue
        if layer.node.op_type in INTEGER_PRODUCTS:
            scale = layer.node.input[INTEGER_PRODUCTS[layer.node.op_type]]
        else:
            scale = made_by[layer.node.input[1]].input[1]
        found[layer.weight] = array(stored[layer.weight]), array(stored[scale])
    return found


def check_same_grids(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Compare the layers of a rewritten file with those of the file it came from.

    Raises:
        QuantizationError: a layer is missing or new, or its integers or scales differ.
    """
    old, new = stored_grids(before), stored_grids(after)
    changed = set(old) ^ set(new)
    if changed:
        raise QuantizationError(f"layer {min(changed)!r}: the rewritten file does not keep it")
    for name, pair in old.items():
        if not all(np.array_equal(a, b) for a, b in zip(pair, new[name], strict=True)):
            raise QuantizationError(
                f"layer {name!r}: the rewritten file's integers or scales differ"
            )
