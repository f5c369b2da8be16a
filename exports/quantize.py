"""Write an INT8 graph (QDQ form) that carries our own weights, scales and zero points.

The nodes are inserted here rather than by onnxruntime.quantization: that would round the weights a
second time from their floats and may move their scales to fit the bias, while the point is that
what was solved is what is served. The file's integers are compared with the given ones at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from exports.embeddings import EmbeddingGrid, quantize_embeddings
from exports.graph import match_arrays
from exports.grids import Activation, QuantizationError, WeightGrid, activation_grid
from exports.onnxfile import (
    Layer,
    array,
    attribute,
    drop_unused,
    fresh_names,
    initializers,
    layers,
    load_model,
    replace_nodes,
    save_model,
)
from exports.placement import Placement, Residual, place

__all__ = [
    "EmbeddingGrid",
    "QuantizationError",
    "WeightGrid",
    "activation_grid",
    "quantize_embeddings",
    "quantize_qdq",
]

_LEVELS = 255
_BIAS_MAX = 2**30  # of int32: the products are added to the bias in the same accumulator
_RAISED_AT_MOST = 0.05


def quantize_qdq(
    fp32: Path,
    out: Path,
    *,
    weights: Mapping[str, WeightGrid],
    ranges: Mapping[str, tuple[float, float]],
    activation: Activation,
    exclude: Iterable[str] = (),
    residual: Residual = "int8",
) -> None:
    """Write the INT8 form of an FP32 graph: only its Linear and Conv layers become integer ones.

    Attention's products of activations, softmax, normalisation and GELU stay float, as do layers
    without a grid. Biases of Conv and Gemm become int32 on the grid input scale * weight scale;
    a MatMul's bias is a float Add of its own and stays one.

    Args:
        fp32: the float graph, whose weights are the grids' values.
        out: the file to write; replaced in one step.
        weights: grids by layer name, found in the graph by their numbers, or by the initializer's
            own name (then the graph's weights may be off the grid).
        ranges: (low, high) by activation, from `calibrate`.
        activation: 'uint8' (asymmetric; for x86) or 'int8'; see `activation_grid`. On x86 without
            VNNI the runtime's uint8 by int8 kernels may saturate; `host_profile` tells.
        exclude: names in `weights` to leave float.
        residual: 'float' or 'int8' additions of two 8-bit tensors, as ResNet's; see `placement`.

    Raises:
        QuantizationError: a grid or a range is missing, does not fit, or was not kept exactly.
    """
    model = load_model(fp32)
    grids = _by_initializer(model, weights, set(exclude))
    dense = {name: array(initializers(model)[name]) for name in grids}
    plan = place(model, grids, residual)
    missing = [name for name in plan.ranged if name not in ranges]
    if missing:
        raise QuantizationError(
            f"activation {missing[0]!r}: no calibrated range; calibrate the file being quantized"
        )
    _Writer(model, plan, grids, ranges, activation).write()
    drop_unused(model)
    save_model(model, out)
    _check_kept(out, grids, dense)


def _by_initializer(
    model: onnx.ModelProto, weights: Mapping[str, WeightGrid], exclude: set[str]
) -> dict[str, WeightGrid]:
    """Return the grids by initializer name, checked against the graph's weights."""
    stored, by_weight = initializers(model), {layer.weight: layer for layer in layers(model)}
    unknown = exclude - set(weights)
    if unknown:
        raise QuantizationError(f"exclude: {min(unknown)!r} is not among the weights' names")
    kept = {name: grid for name, grid in weights.items() if name not in exclude}
    by_content = {name: grid.values() for name, grid in kept.items() if name not in by_weight}
    named = match_arrays(model, by_content) if by_content else {}
    grids: dict[str, WeightGrid] = {}
    for name, grid in kept.items():
        weight = named.get(name, name)
        expected = tuple(stored[weight].dims)
        if by_weight[weight].rows_axis == 1:
            expected = expected[::-1]
        _check_grid(name, grid, expected)
        if weight in grids and not np.array_equal(grids[weight].integers, grid.integers):
            raise QuantizationError(f"layer {name!r}: shares its weight with a layer of other grid")
        grids[weight] = grid
    return grids


def _check_grid(name: str, grid: WeightGrid, expected: tuple[int, ...]) -> None:
    """Refuse a grid whose shape, type or scales cannot be right."""
    if grid.integers.dtype != np.int8:
        raise QuantizationError(
            f"layer {name!r}: integers are {grid.integers.dtype}, expected int8"
        )
    if grid.integers.shape != expected:
        raise QuantizationError(
            f"layer {name!r}: integers have shape {grid.integers.shape}, the graph {expected}"
        )
    if grid.scale.shape != expected[:1]:
        raise QuantizationError(
            f"layer {name!r}: {grid.scale.shape} scales, expected one a row {expected[:1]}"
        )
    used = grid.integers.reshape(expected[0], -1).any(axis=1)
    if not np.isfinite(grid.scale).all() or (grid.scale[used] <= 0).any():
        raise QuantizationError(f"layer {name!r}: a scale is not a positive number")


class _Writer:
    """Rewrites one graph in place, node by node, in topological order."""

    def __init__(
        self,
        model: onnx.ModelProto,
        plan: Placement,
        grids: Mapping[str, WeightGrid],
        ranges: Mapping[str, tuple[float, float]],
        activation: Activation,
    ) -> None:
        self.model, self.plan, self.grids = model, plan, grids
        self.ranges, self.activation = ranges, activation
        self.stored = initializers(model)
        self.added: set[str] = set()
        self.layer_of: dict[str, Layer] = {layer.node.output[0]: layer for layer in plan.layers}
        self.landed = set(plan.landed)
        self.quantized = self.landed | set(plan.inputs)
        self.weight_scale: dict[str, np.ndarray] = {}
        self.head: list[onnx.NodeProto] = []  # dequantized weights and biases: need no activation

    def write(self) -> None:
        """Insert the quantize and dequantize nodes and read through them."""
        graph = self.model.graph
        body: list[onnx.NodeProto] = []
        for value in graph.input:
            body += self._pair(value.name)
        for node in graph.node:
            layer = self.layer_of.get(node.output[0])
            if layer is not None:
                self._read_grid(node, layer)
            for index, name in enumerate(node.input):
                if name in self.landed:
                    node.input[index] = f"{name}_dequantized"
            body.append(node)
            for name in node.output:
                body += self._pair(name)
        replace_nodes(self.model, [*self.head, *body])

    def _constant(self, name: str, values: np.ndarray) -> str:
        """Store a tensor once and return its name.

        A name that the model has already is refused: a parameter of its own, or a grid.
        """
        if name not in self.added:
            if fresh_names(self.model, [name]):
                raise QuantizationError(
                    f"tensor {name!r} exists already: the graph is quantized, or the model has a "
                    "parameter of that name; rename it"
                )
            tensor = numpy_helper.from_array(np.asarray(values, order="C"), name)
            self.model.graph.initializer.append(tensor)
            self.added.add(name)
        return name

    def _grid_of(self, tensor: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the scale and zero point of an activation."""
        low, high = self.ranges[self.plan.same_grid.get(tensor, tensor)]
        return activation_grid(low, high, self.activation)

    def _pair(self, tensor: str) -> list[onnx.NodeProto]:
        """Return the quantize and dequantize nodes that follow a tensor, if it has any."""
        if tensor not in self.quantized:
            return []
        scale, zero = self._grid_of(tensor)
        grid = [
            self._constant(f"{tensor}_scale", scale),
            self._constant(f"{tensor}_zero_point", zero),
        ]
        integers, floats = f"{tensor}_quantized", f"{tensor}_dequantized"
        return [
            helper.make_node("QuantizeLinear", [tensor, *grid], [integers], f"{tensor}/quantize"),
            helper.make_node(
                "DequantizeLinear", [integers, *grid], [floats], f"{tensor}/dequantize"
            ),
        ]

    def _read_grid(self, node: onnx.NodeProto, layer: Layer) -> None:
        """Make a layer read its input, weight and bias through dequantize nodes."""
        data = node.input[0]
        if node.op_type == "Gemm":
            self._check_gemm(node, layer)
        step = float(self._grid_of(data)[0])
        if len(node.input) > 2 and node.input[2] in self.stored:
            bias = array(self.stored[node.input[2]]).reshape(-1).astype(np.float64)
            scale = self._weight(layer, bias, step)
            node.input[2] = self._bias(layer, bias, step * scale)
        else:
            self._weight(layer, np.zeros(1), step)
        node.input[1] = f"{layer.weight}_dequantized"
        if data not in self.landed:  # landed inputs are rewired for every reader
            node.input[0] = f"{data}_dequantized"

    def _check_gemm(self, node: onnx.NodeProto, layer: Layer) -> None:
        """Refuse the forms of Gemm that are not a Linear layer."""
        plain = all(attribute(node, name, 1.0) == 1.0 for name in ("alpha", "beta"))
        if attribute(node, "transA", 0) or not plain:
            raise QuantizationError(
                f"layer {layer.weight!r}: its Gemm is scaled or transposes input"
            )

    def _weight(self, layer: Layer, bias: np.ndarray, step: float) -> np.ndarray:
        """Store a layer's integers and scales once; return the scales, all positive."""
        name, grid = layer.weight, self.grids[layer.weight]
        if name in self.weight_scale:
            return self.weight_scale[name]
        scale = self.weight_scale[name] = _scales(name, grid, bias, step)
        integers = grid.integers.T if layer.rows_axis == 1 else grid.integers
        inputs = [
            self._constant(f"{name}_quantized", integers),
            self._constant(f"{name}_scale", scale),
            self._constant(f"{name}_zero_point", np.zeros(len(scale), np.int8)),
        ]
        self._dequantize(name, inputs, layer.rows_axis)
        return scale

    def _bias(self, layer: Layer, bias: np.ndarray, steps: np.ndarray) -> str:
        """Store a bias as int32 on the accumulator's grid; return what the layer should read."""
        integers = np.rint(np.broadcast_to(bias, steps.shape) / steps.astype(np.float64))
        if np.abs(integers).max(initial=0) > 1.01 * _BIAS_MAX:  # only where layers share a weight
            raise QuantizationError(
                f"layer {layer.weight!r}: its bias exceeds int32 on the grid of a layer that "
                "shares the weight; exclude it"
            )
        # A stored bias may serve several layers, each with scales of its own.
        name = f"{layer.node.output[0]}_bias"
        inputs = [
            self._constant(f"{name}_quantized", integers.astype(np.int32)),
            self._constant(f"{name}_scale", steps.astype(np.float32)),
            self._constant(f"{name}_zero_point", np.zeros(len(steps), np.int32)),
        ]
        self._dequantize(name, inputs, 0)
        return f"{name}_dequantized"

    def _dequantize(self, name: str, inputs: list[str], axis: int) -> None:
        """Add the node that makes a stored tensor's floats."""
        made = [f"{name}_dequantized"]
        self.head.append(
            helper.make_node("DequantizeLinear", inputs, made, f"{name}/dequantize", axis=axis)
        )


def _scales(name: str, grid: WeightGrid, bias: np.ndarray, step: float) -> np.ndarray:
    """Return a layer's scales, raised where int32 could not hold the bias otherwise.

    That happens to channels that are all but dead (weights near zero beside their bias, as
    BatchNorm folding leaves them). ONNX Runtime quantizes such a bias by itself, wrapping around,
    where it is left float. On the raised scale the channel's weights still weigh at most
    255 * sum|integers| / 2^30 of its bias, in practice far below an 8-bit step of its output.

    Raises:
        QuantizationError: raising would change a channel by more than `_RAISED_AT_MOST` of its
            bias in the worst case.
    """
    weights = np.abs(grid.integers.reshape(len(grid.scale), -1).astype(np.int64)).sum(axis=1)
    used = weights > 0
    # A channel without weights is zero under any scale; an ordinary one keeps its bias exact.
    usual = float(np.median(grid.scale[used])) if used.any() else 1.0
    scale = np.where(used, grid.scale, usual).astype(np.float32)
    needed = np.abs(np.broadcast_to(bias, scale.shape)) / (step * _BIAS_MAX)
    raised = needed > scale
    worst = _LEVELS * weights[raised].max(initial=0) / _BIAS_MAX
    if worst > _RAISED_AT_MOST:
        raise QuantizationError(
            f"layer {name!r}: a bias is too large for int32 on its grid; exclude the layer or "
            "raise its smallest scales"
        )
    return np.where(raised, needed, scale).astype(np.float32)


def _check_kept(
    path: Path, grids: Mapping[str, WeightGrid], dense: Mapping[str, np.ndarray]
) -> None:
    """Read the file back: the integers are the given ones, and what was zero still is.

    Raises:
        QuantizationError: naming the layer that differs.
    """
    model = load_model(path)
    stored = initializers(model)
    axis_of = {layer.weight: layer.rows_axis for layer in layers(model)}
    for name, grid in grids.items():
        written = array(stored[f"{name}_quantized"])
        before = dense[name]
        if axis_of[f"{name}_quantized"] == 1:
            written, before = written.T, before.T
        if not np.array_equal(written, grid.integers):
            raise QuantizationError(f"layer {name!r}: the file's integers differ from the given")
        if written[before == 0].any():
            raise QuantizationError(f"layer {name!r}: a masked zero is not zero in the integers")
