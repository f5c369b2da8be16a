"""Decide where quantize and dequantize nodes go: the placement that ONNX Runtime runs fastest.

Measured with ONNX Runtime 1.31 on an EPYC with AVX512-VNNI, one thread, spinning off, batch 1,
interleaved medians, uint8 activations, INT8 over FP32 (the file without value_info):

    MiniLM, 16 tokens   input only 2.5x    input and output 2.3x   dynamic, fused bias 2.7x
    DeiT-S, 128 px      input only 2.5x    input and output 2.4x   dynamic 2.6x
    ResNet-50, 128 px   conv input 1.7x    input and output 2.8x   and residual Add 3.1x
    ConvNeXt-nano       conv input 0.6x    input and output 2.0x   depthwise left float 2.0x
    MobileNetV2         residual Add float 1.6x   Add too 1.7x     depthwise left float 1.4x

With int8 activations ResNet-50 1.5x, ConvNeXt-nano 1.5x, MobileNetV2 1.1x, DeiT-S as with uint8.
A row's placements were timed in one process; on a busy host ratios were up to a tenth lower.

So a Linear layer gets a quantized input and a float output (MatMulIntegerToFloat, or QGemm for
the head), one QuantizeLinear shared by all layers that read the tensor; a Conv gets both sides
quantized (QLinearConv), the output after a Relu or Clip, which then costs nothing. A conv whose
output stays float falls back to a float kernel with dequantized weights. An Add of two 8-bit
tensors costs little (ResNet-50 on 600 images of 12 classes: labels agree with FP32 on 0.985 of them
instead of 0.990). Dynamic ranges would gain a little on text, but are not ours: what was calibrated
is what is served.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import onnx

from exports.onnxfile import Layer, consumers, initializers, layers

Residual = Literal["float", "int8"]
_FOLDED_ACTIVATIONS = ("Relu", "Clip")  # absorbed by the output's zero point and range


@dataclass(frozen=True)
class Placement:
    """Which layers become integer ones and which tensors carry 8-bit numbers.

    Attributes:
        layers: the Linear and Conv layers to quantize.
        inputs: tensors read through a quantize-dequantize pair by those layers only.
        landed: tensors that exist as 8-bit numbers only; every reader gets the dequantized one.
        same_grid: landed tensors that take another's scale and zero point (max pooling).
    """

    layers: tuple[Layer, ...]
    inputs: tuple[str, ...]
    landed: tuple[str, ...]
    same_grid: dict[str, str]

    @property
    def ranged(self) -> tuple[str, ...]:
        """Tensors whose range must be calibrated."""
        both = dict.fromkeys((*self.inputs, *self.landed))
        return tuple(name for name in both if name not in self.same_grid)


def place(model: onnx.ModelProto, weights: Iterable[str], residual: Residual) -> Placement:
    """Choose the placement for the layers whose weight initializers are named.

    Args:
        model: an FP32 graph.
        weights: initializers of the layers to quantize.
        residual: 'float' adds residual branches in float; 'int8' also quantizes an Add whose two
            inputs are 8-bit already, which keeps a whole ResNet in integers.
    """
    wanted = set(weights)
    chosen = tuple(layer for layer in layers(model) if layer.weight in wanted)
    by_output = {layer.node.output[0]: layer for layer in chosen}
    readers, stored = consumers(model), initializers(model)
    outputs = {value.name for value in model.graph.output}
    landed: dict[str, None] = {}
    same_grid: dict[str, str] = {}
    for node in model.graph.node:
        out = node.output[0]
        if out in by_output and by_output[out].is_conv:
            target = _landing(out, readers, outputs)
        elif node.op_type == "MaxPool" and node.input[0] in landed and len(node.output) == 1:
            target = out
            same_grid[out] = same_grid.get(node.input[0], node.input[0])
        elif (
            residual == "int8"
            and node.op_type == "Add"
            and all(name in landed and name not in stored for name in node.input)
        ):
            target = _landing(out, readers, outputs)
        else:
            continue
        if target not in outputs:  # the graph's own output keeps its name and its floats
            landed[target] = None
    inputs = dict.fromkeys(
        layer.node.input[0] for layer in chosen if layer.node.input[0] not in landed
    )
    return Placement(chosen, tuple(inputs), tuple(landed), same_grid)


def _landing(name: str, readers: dict[str, list[onnx.NodeProto]], outputs: set[str]) -> str:
    """Return the tensor to quantize for a conv's output: after its Relu or Clip if that is all."""
    after = readers.get(name, [])
    if len(after) == 1 and after[0].op_type in _FOLDED_ACTIVATIONS and name not in outputs:
        return after[0].output[0]
    return name
