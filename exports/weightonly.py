"""Store Linear weights as 4-bit integers that are dequantized inside the product.

A layer may also have 2 or 8 bits: ONNX Runtime 1.31's kernel on CPU takes 2, 4 and 8 and refuses
all others. What these widths cost in time has no benchmark yet.

com.microsoft MatMulNBits keeps the activations float, so nothing is calibrated. It buys bytes, and
some time where few tokens make memory the limit; at larger batches it computes as FP32 does.
Measured with ONNX Runtime 1.31 on one thread of an EPYC with AVX512-VNNI, a scale for every 32
columns, milliseconds, interleaved medians on a host shared with other work:

                       FP32    4 bits, level 4    static INT8    file over FP32
    MiniLM, 16 tokens   5.5         3.4               2.6        0.60 (its tables stay float)
      batch of 32      58.9        61.1              24.2
    DeiT-S, 128 px     20.5        16.5               7.8        0.17
      a second run     21.6        19.4               9.2
      batch of 16     294         274               121

DeiT-S on 500 images of 12 classes, solved by the sweep on 160 others: KL to FP32 0.0023 nats
(level 4 0.0024) against 0.0067 rounded to nearest; labels agree on 0.952 (0.950) against 0.938.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from exports.graph import match_arrays
from exports.grids import QuantizationError
from exports.onnxfile import (
    Layer,
    array,
    attribute,
    consumers,
    drop_unused,
    initializers,
    layers,
    load_model,
    packed_integers,
    replace_nodes,
    require_opset,
    save_model,
)

MICROSOFT = "com.microsoft"
WIDTHS = (8, 4, 2)  # bits that the runtime serves
_SMALLEST_BLOCK = 16  # MatMulNBits takes powers of two from here on


@dataclass(frozen=True)
class BlockGrid:
    """A Linear weight as small integers and a scale for every `block` columns of a row.

    Attributes:
        integers: int8 (out, in), within [-8, 7] for 4 bits, the shape of the torch weight.
        scale: float32 (out, ceil(in / block)); the last block of a row may be shorter.
        block: columns that share a scale: 16, 32, 64, ...
        bits: 2, 4 or 8.
    """

    integers: np.ndarray
    scale: np.ndarray
    block: int
    bits: int = 4

    def values(self) -> np.ndarray:
        """Return the weight the grid stands for: integers times scale, float32 (out, in)."""
        spread = self.scale.astype(np.float32).repeat(self.block, axis=1)
        return self.integers.astype(np.float32) * spread[:, : self.integers.shape[1]]

    def packed(self) -> np.ndarray:
        """Return uint8 (out, blocks, block * bits / 8): the zero point is the middle (8 for 4
        bits), low bits first, padded with zero.
        """
        rows, columns = self.integers.shape
        blocks, a_byte = self.scale.shape[1], 8 // self.bits
        whole = np.zeros((rows, blocks * self.block), np.int16)
        whole[:, :columns] = self.integers
        shifted = (whole + 2 ** (self.bits - 1)).astype(np.uint8)
        packed = np.zeros((rows, blocks * self.block // a_byte), np.uint8)
        for at in range(a_byte):
            packed |= shifted[:, at::a_byte] << np.uint8(self.bits * at)
        return packed.reshape(rows, blocks, self.block // a_byte)


def quantize_weight_only(
    fp32: Path,
    out: Path,
    *,
    weights: Mapping[str, BlockGrid],
    exclude: Iterable[str] = (),
    accuracy_level: int = 4,
) -> None:
    """Write the weight-only form of a graph: its Linear layers become MatMulNBits, bias included.

    Convolutions, embeddings and layers without a grid stay as they are.

    Args:
        fp32: the float graph, whose weights are the grids' values.
        out: the file to write (may be `fp32`); replaced in one step.
        weights: grids by layer name, found in the graph by their numbers, or by the initializer's
            own name (then the graph's weights may be off the grid).
        exclude: names in `weights` to leave float.
        accuracy_level: 4 lets the kernel round activations to 8 bits, a block at a time, as it
            runs (faster); 1 keeps them float32.

    Raises:
        QuantizationError: a grid does not fit its layer, or was not kept exactly.
    """
    model = load_model(fp32)
    left_out = set(exclude)
    unknown = left_out - set(weights)
    if unknown:
        raise QuantizationError(f"exclude: {min(unknown)!r} is not among the weights' names")
    wanted = {name: grid for name, grid in weights.items() if name not in left_out}
    grids = _by_initializer(model, wanted)
    readers = consumers(model)
    nodes: dict[str, onnx.NodeProto] = {}  # by output of the node that it stands in for
    dropped: set[str] = set()
    for layer in layers(model):
        if layer.weight not in grids:
            continue
        node, swallowed = _product(model, layer, grids[layer.weight], readers, accuracy_level)
        nodes[layer.node.output[0]] = node
        dropped |= swallowed
    stored = initializers(model)
    for name, grid in grids.items():
        for suffix, values in (("quantized", grid.packed()), ("scale", grid.scale)):
            tensor = numpy_helper.from_array(np.ascontiguousarray(values), f"{name}_{suffix}")
            if tensor.name in stored:
                raise QuantizationError(f"tensor {tensor.name!r} exists; the graph is quantized")
            model.graph.initializer.append(tensor)
    kept = [node for node in model.graph.node if node.output[0] not in dropped]
    replace_nodes(model, [nodes.get(node.output[0], node) for node in kept])
    require_opset(model, MICROSOFT)
    drop_unused(model)
    save_model(model, out)
    _check_kept(out, grids)


def _by_initializer(
    model: onnx.ModelProto, weights: Mapping[str, BlockGrid]
) -> dict[str, BlockGrid]:
    """Return the grids by initializer name, checked against the graph's layers."""
    by_weight = {layer.weight: layer for layer in layers(model)}
    stored = initializers(model)
    for name, grid in weights.items():
        _check_grid(name, grid)
    by_content = {name: grid.values() for name, grid in weights.items() if name not in by_weight}
    named = match_arrays(model, by_content) if by_content else {}
    grids: dict[str, BlockGrid] = {}
    for name, grid in weights.items():
        weight = named.get(name, name)
        layer = by_weight[weight]
        if layer.is_conv:
            raise QuantizationError(f"layer {name!r}: a convolution; 4 bits are for Linear layers")
        expected = tuple(stored[weight].dims)
        expected = expected[::-1] if layer.rows_axis == 1 else expected
        if grid.integers.shape != expected:
            raise QuantizationError(
                f"layer {name!r}: integers have shape {grid.integers.shape}, the graph {expected}"
            )
        other = grids.get(weight, grid)
        if other.bits != grid.bits or not np.array_equal(other.integers, grid.integers):
            raise QuantizationError(f"layer {name!r}: shares its weight with a layer of other grid")
        grids[weight] = grid
    return grids


def _check_grid(name: str, grid: BlockGrid) -> None:
    """Refuse a grid whose type, block or scales cannot be right."""
    if grid.integers.dtype != np.int8 or grid.integers.ndim != 2:
        kind = f"{grid.integers.dtype} of {grid.integers.ndim} axes"
        raise QuantizationError(f"layer {name!r}: integers are {kind}, expected int8 of 2")
    bits = grid.bits
    if bits not in WIDTHS:
        raise QuantizationError(f"layer {name!r}: {bits} bits; the runtime takes 2, 4 and 8")
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if grid.integers.min(initial=0) < low or grid.integers.max(initial=0) > high:
        raise QuantizationError(
            f"layer {name!r}: integers leave [{low}, {high}]; solve it with bits={bits}"
        )
    block = grid.block
    if block < _SMALLEST_BLOCK or block & (block - 1):
        raise QuantizationError(
            f"layer {name!r}: block {block}; the runtime takes powers of two from 16 on"
        )
    rows, columns = grid.integers.shape
    expected = (rows, -(-columns // block))
    if grid.scale.shape != expected or grid.scale.dtype != np.float32:
        raise QuantizationError(
            f"layer {name!r}: scales are {grid.scale.dtype} of shape {grid.scale.shape}, expected "
            f"float32 {expected}"
        )
    if not np.isfinite(grid.scale).all():
        raise QuantizationError(f"layer {name!r}: a scale is not a finite number")


def _product(
    model: onnx.ModelProto,
    layer: Layer,
    grid: BlockGrid,
    readers: Mapping[str, list[onnx.NodeProto]],
    accuracy_level: int,
) -> tuple[onnx.NodeProto, set[str]]:
    """Return a layer's MatMulNBits, and the outputs of nodes that it swallows (a bias Add)."""
    node, out = layer.node, layer.node.output[0]
    bias, swallowed = "", set[str]()
    if node.op_type == "Gemm":
        plain = all(attribute(node, name, 1.0) == 1.0 for name in ("alpha", "beta"))
        if attribute(node, "transA", 0) or not plain:
            raise QuantizationError(
                f"layer {layer.weight!r}: its Gemm is scaled or transposes input; exclude it"
            )
        bias = node.input[2] if len(node.input) > 2 else ""
    else:
        after = readers.get(out, [])
        graph_outputs = {value.name for value in model.graph.output}
        if len(after) == 1 and after[0].op_type == "Add" and out not in graph_outputs:
            other = next((name for name in after[0].input if name != out), "")
            stored = initializers(model).get(other)
            if stored is not None and tuple(stored.dims) == (len(grid.integers),):
                bias, out = other, after[0].output[0]
                swallowed = {out}
    rows, columns = grid.integers.shape
    inputs = [node.input[0], f"{layer.weight}_quantized", f"{layer.weight}_scale"]
    return (
        helper.make_node(
            "MatMulNBits",
            [*inputs, "", "", bias] if bias else inputs,
            [out],
            f"{out}/product",
            domain=MICROSOFT,
            K=columns,
            N=rows,
            bits=grid.bits,
            block_size=grid.block,
            accuracy_level=accuracy_level,
        ),
        swallowed,
    )


def _check_kept(path: Path, grids: Mapping[str, BlockGrid]) -> None:
    """Read the file back: the integers and scales are the given ones."""
    model = load_model(path)
    stored = initializers(model)
    seen = set()
    for layer in layers(model):
        name = layer.weight.removesuffix("_quantized")
        if name in grids and layer.node.op_type == "MatMulNBits":
            same = np.array_equal(
                packed_integers(layer.node, array(stored[layer.weight])), grids[name].integers
            ) and np.array_equal(array(stored[layer.node.input[2]]), grids[name].scale)
            if not same:
                raise QuantizationError(
                    f"layer {name!r}: the file's integers differ from the given"
                )
            seen.add(name)
    missing = set(grids) - seen
    if missing:
        raise QuantizationError(f"layer {min(missing)!r}: was not found again in the file")
