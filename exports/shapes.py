"""The shapes of a graph's tensors, as far as they can be told without running it."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from exports.first_token import ONE_BY_ONE, TWO
from exports.onnxfile import INTEGER_PRODUCTS

Size = int | str | None  # a number; a name, equal where sizes are equal; not known
Shape = tuple[Size, ...]


def known_shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """Return the shapes of inputs, outputs and made tensors; those of unknown rank are left out."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    for node in light.graph.node:  # the products are unknown to ONNX; for the shape they are MatMul
        if node.op_type in INTEGER_PRODUCTS:
            node.domain, node.op_type = "", "MatMul"
            del node.input[2:]
    # data_prop: a Reshape to what a Shape node says keeps the names of those sizes
    known = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    shapes = {tensor.name: Shape(tensor.dims) for tensor in model.graph.initializer}
    stored = set(shapes)
    for value in (*known.value_info, *known.input, *known.output):
        if value.type.tensor_type.HasField("shape"):
            shapes[value.name] = tuple(_size(dim) for dim in value.type.tensor_type.shape.dim)
    _name_sums(light, shapes)
    return {name: shape for name, shape in shapes.items() if name not in stored}


def _name_sums(model: onnx.ModelProto, shapes: dict[str, Shape]) -> None:
    """Carry sizes through sums and what acts number by number, where inference gives them up.

    The sum of (batch, sequence, width) and a slice of a position table has unknown sizes to ONNX,
    since a single token would be repeated over a longer slice. Such a model would run on one token
    only; here the sum has the sizes of the operand whose sizes are known.
    """
    inputs = {size for value in model.graph.input for size in shapes.get(value.name, ())}

    def is_firm(size: Size) -> bool:
        return size is not None and size != 1 and (isinstance(size, int) or size in inputs)

    for node in model.graph.node:
        out = shapes.get(node.output[0])
        one = (*ONE_BY_ONE, "LayerNormalization", "MatMul")
        if out is None or node.op_type not in (*one, *TWO):
            continue
        operands = node.input[:1] if node.op_type in one else node.input
        sizes = list(out)
        for shape in (shapes.get(name, ()) for name in operands):
            for axis in range(-min(len(shape), len(sizes)), 0):
                last = axis == -1 and node.op_type == "MatMul"
                if not last and not is_firm(sizes[axis]) and is_firm(shape[axis]):
                    sizes[axis] = shape[axis]
        shapes[node.output[0]] = tuple(sizes)


def keeps_rows(before: Shape, after: Shape, target: Sequence[int]) -> bool:
    """Whether a Reshape provably leaves the first two axes, batch and tokens, as they are.

    Args:
        before: (batch, tokens, width).
        after: (batch, tokens, ...), what shape inference says of the result.
        target: the sizes that the Reshape asks for; 0 keeps a size, -1 is not known.
    """
    if len(before) != 3 or len(after) < 3 or len(target) != len(after):
        return False
    equal = [
        target[axis] == 0 or (before[axis] is not None and before[axis] == after[axis])
        for axis in (0, 1)
    ]
    if all(equal):
        return True
    inner = 1
    for known, asked in zip(after[2:], target[2:], strict=True):
        size = known if isinstance(known, int) else asked
        if size < 1:
            return False
        inner *= size
    return any(equal) and inner == before[2]  # as many numbers in all: the other one is equal too


def _size(dim: onnx.TensorShapeProto.Dimension) -> Size:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return dim.dim_param or None
