"""Write the mask of padded tokens with three operators instead of a tracer's thirty.

transformers builds the additive mask from index arithmetic (GatherND over a grid of positions),
which at batch 1 is thirty operators of a few microseconds. For an encoder it always means the
same: 0 where the key is a token, the least float where it is padding.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from exports.onnxfile import (
    consumers,
    drop_dead_nodes,
    fresh_names,
    initializers,
    producers,
    replace_nodes,
)
from exports.runtime import SessionError, session

_MASK = "attention_mask"
_SHAPES = ((1, 4), (2, 7), (3, 5))  # rows, tokens to compare the two masks on
_LONG = 1024  # tokens: a window that is wider than the texts above shows here only
_AXES, _LEAST, _NONE = "key_mask_axes", "key_mask_least", "key_mask_none"


def simplify_masks(model: onnx.ModelProto) -> int:
    """Replace padding masks in place, where running both forms proves them equal.

    A mask is what is added to a Softmax's input and depends on the graph's 'attention_mask' only.
    A mask that means anything else (causal, windowed) differs on the samples and stays.

    Returns:
        How many tensors were replaced.
    """
    if _MASK not in {value.name for value in model.graph.input}:
        return 0
    made_by, readers = producers(model), consumers(model)
    found = [
        name
        for name in dict.fromkeys(
            name for node in model.graph.node if node.op_type == "Add" for name in node.input
        )
        if name in made_by
        and all(_feeds_softmax(node, readers) for node in readers[name])
        and _is_padding_mask(model, name, made_by)
    ]
    if not found or fresh_names(model, [_AXES, _LEAST, _NONE, "key_mask"]):
        return 0
    constants = (
        (_AXES, np.asarray([1, 2], np.int64)),
        (_LEAST, np.asarray(np.finfo(np.float32).min)),
        (_NONE, np.asarray(0, np.float32)),
    )
    model.graph.initializer.extend(numpy_helper.from_array(x, name) for name, x in constants)
    new = [
        helper.make_node("Cast", [_MASK], ["key_mask_bool"], "key_mask/bool", to=TensorProto.BOOL),
        helper.make_node("Unsqueeze", ["key_mask_bool", _AXES], ["key_mask_rows"], "key_mask/rows"),
        helper.make_node("Where", ["key_mask_rows", _NONE, _LEAST], ["key_mask"], "key_mask/where"),
    ]
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name in found:
                node.input[index] = "key_mask"
    replace_nodes(model, [*new, *model.graph.node])
    drop_dead_nodes(model)
    return len(found)


def _feeds_softmax(node: onnx.NodeProto, readers: dict[str, list[onnx.NodeProto]]) -> bool:
    """Whether a node is an Add that only a Softmax reads."""
    after = readers.get(node.output[0], [])
    return node.op_type == "Add" and [n.op_type for n in after] == ["Softmax"]


def _is_padding_mask(model: onnx.ModelProto, name: str, made_by: dict[str, onnx.NodeProto]) -> bool:
    """Run the tensor's own part of the graph on random masks, short and long, and compare."""
    wanted, nodes = {name}, []
    for node in reversed(model.graph.node):
        if wanted.intersection(node.output):
            nodes.append(node)
            wanted.update(node.input)
    stored = initializers(model)
    inputs = {n for n in wanted if n and n not in made_by and n not in stored}
    if inputs != {_MASK}:
        return False
    part = onnx.helper.make_model(
        onnx.helper.make_graph(
            list(reversed(nodes)),
            "mask",
            [value for value in model.graph.input if value.name == _MASK],
            [onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
            [stored[n] for n in wanted if n in stored],
        ),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    try:
        runner = session(part.SerializeToString())
    except SessionError:
        return False
    if not all(_pads(runner, rows, tokens) for rows, tokens in _SHAPES):
        return False
    verdict = _pads(runner, 1, _LONG)
    # a table of positions may end earlier: then at the last length that it has
    runs, fails = max(tokens for _, tokens in _SHAPES), _LONG
    while verdict is None and fails - runs > 1:
        middle = (runs + fails) // 2
        runs, fails = (runs, middle) if _pads(runner, 1, middle) is None else (middle, fails)
    return bool(_pads(runner, 1, runs) if verdict is None else verdict)


def _pads(runner: ort.InferenceSession, rows: int, tokens: int) -> bool | None:
    """Whether a mask of (rows, tokens) masks padding and no more; None where it does not run."""
    mask = np.random.default_rng(tokens).integers(0, 2, (rows, tokens)).astype(np.int64)
    mask[:, 0] = 1  # a text has at least one token
    options = ort.RunOptions()
    options.log_severity_level = 4  # a length that does not run is an answer here
    name = runner.get_outputs()[0].name
    try:
        got = runner.run([name], {_MASK: mask}, options)[0]
    except Exception:  # pybind raises one type per status code
        return None
    if got.dtype != np.float32 or got.ndim != 4 or got.shape[1] != 1:
        return False
    full = (rows, 1, tokens, tokens)
    if any(size not in (1, whole) for size, whole in zip(got.shape, full, strict=True)):
        return False
    expected = np.where(mask[:, None, None, :] != 0, 0, np.finfo(np.float32).min)
    return np.array_equal(np.broadcast_to(got, full), np.broadcast_to(expected, full))
