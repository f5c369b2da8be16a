from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from exports.calibrate import calibrate
from exports.census import census
from exports.graph import export_onnx
from exports.onnxfile import GraphError, initializers, layers, load_model
from exports.quantize import quantize_qdq

from .conftest import Exported, grids_of


@pytest.mark.parametrize("family", ["bert", "distilbert", "deit", "convnext"])
def test_counts_are_the_torch_models(exported, family: str) -> None:
    item: Exported = exported(family)
    counts = census(item.fp32)
    assert counts["parameters"] == sum(p.numel() for p in item.model.parameters())
    assert counts["nonzero"] == sum(int((p != 0).sum()) for p in item.model.parameters())
    weighted = {
        name: module.weight
        for name, module in item.model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    head = list(weighted)[-1]
    body = {name: w.detach().numpy() for name, w in weighted.items() if name != head}
    assert counts["prunable"] == sum(w.size for w in body.values())
    assert counts["bytes"] == item.fp32.stat().st_size
    assert census(item.fp32, body) == counts  # by content


class Normed(nn.Module):
    """A batch norm that no convolution takes up, and a table that the tracer computes once."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(7), nn.Linear(7, 3)
        nn.init.normal_(self.norm.running_mean)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = torch.sin(torch.arange(28.0)).reshape(7, 2, 2)
        return self.head((torch.relu(self.norm(x)) * table).mean((2, 3)))


def test_running_statistics_are_no_parameters_and_folded_constants_count(tmp_path) -> None:
    model, path = Normed().eval(), tmp_path / "m.onnx"
    export_onnx(model, (torch.zeros(1, 7, 2, 2),), path, input_names=["x"])
    kinds = [node.op_type for node in load_model(path).graph.node]
    assert "BatchNormalization" in kinds and "Sin" not in kinds
    learnt = sum(p.numel() for p in model.parameters())
    assert census(path)["parameters"] == learnt + 7 * 2 * 2


def test_quantized_counts_are_those_of_the_integers(exported, tmp_path) -> None:
    item: Exported = exported("bert")
    grids = grids_of(item.fp32, zeros=0.5)
    model = load_model(item.fp32)
    stored = initializers(model)
    for layer in layers(model):
        values = grids[layer.weight].values()
        values = values.T.copy() if layer.rows_axis == 1 else values
        stored[layer.weight].CopyFrom(onnx.numpy_helper.from_array(values, layer.weight))
    sparse, out = tmp_path / "s.onnx", tmp_path / "q.onnx"
    onnx.save(model, str(sparse))
    ranges = calibrate(sparse, [item.feed(4)])
    quantize_qdq(sparse, out, weights=grids, ranges=ranges, activation="uint8")
    dense, pruned, integer = census(item.fp32), census(sparse), census(out)
    head = next(layer.weight for layer in layers(model) if layer.is_head)
    nonzero = sum(np.count_nonzero(g.integers) for n, g in grids.items() if n != head)
    assert dense["parameters"] == pruned["parameters"] == integer["parameters"]
    assert dense["prunable"] == pruned["prunable"] == integer["prunable"]
    assert pruned["prunable_nonzero"] == integer["prunable_nonzero"] == nonzero
    assert 0.45 < nonzero / dense["prunable"] < 0.55
    assert integer["bytes"] < pruned["bytes"]
    by_content = {n: g.values() for n, g in grids.items() if n != head}
    assert census(out, by_content) == integer
    assert census(out, [n for n in grids if n != head]) == integer  # by the FP32 file's names


def test_a_zero_point_is_respected(tmp_path) -> None:
    """uint8 weights around 128: 128 stands for zero, 0 does not."""
    helper, numbers = onnx.helper, onnx.numpy_helper
    weight = np.array([[128, 0], [129, 128], [7, 128]], np.uint8)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wf"], axis=1),
        helper.make_node("MatMul", ["x", "wf"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 2])],
        [
            numbers.from_array(weight, "w"),
            numbers.from_array(np.ones(2, np.float32), "s"),
            numbers.from_array(np.full(2, 128, np.uint8), "z"),
        ],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), str(path))
    counts = census(path, ["w"])
    assert (counts["parameters"], counts["nonzero"], counts["prunable_nonzero"]) == (6, 3, 3)


def test_an_unknown_layer_is_named(exported) -> None:
    with pytest.raises(GraphError, match="'nowhere'"):
        census(exported("bert").fp32, ["nowhere"])
    with pytest.raises(GraphError, match="'nowhere'"):
        census(exported("bert").fp32, {"nowhere": np.ones((32, 32), np.float32)})
