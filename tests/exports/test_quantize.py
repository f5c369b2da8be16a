from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from exports.calibrate import calibrate
from exports.graph import export_onnx
from exports.onnxfile import array, initializers, layers, load_model
from exports.quantize import QuantizationError, WeightGrid, activation_grid, quantize_qdq
from exports.runtime import run_logits, session

from .conftest import Exported, grid_of, grids_of, torch_logits


def optimised_operators(path: Path, folder: Path) -> Counter[str]:
    """Operators of the graph that ONNX Runtime really runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(n.op_type for n in onnx.load(str(folder / "optimised.onnx")).graph.node)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


@pytest.mark.parametrize("family", ["resnet", "mobilenetv2", "convnext", "deit", "bert", "roberta"])
def test_int8_carries_our_integers_and_stays_near(quantized, family: str) -> None:
    item: Exported = quantized(family)
    model = load_model(item.int8)
    onnx.checker.check_model(str(item.int8), full_check=True)
    stored = initializers(model)
    axes = {layer.weight: layer.rows_axis for layer in layers(model)}
    for name, grid in item.grids.items():
        written = array(stored[f"{name}_quantized"])
        written = written.T if axes[f"{name}_quantized"] == 1 else written
        assert np.array_equal(written, grid.integers)
        assert np.array_equal(array(stored[f"{name}_scale"]), grid.scale)
        assert name not in stored  # the float copy is gone
    feed = item.feed(8, seed=1)
    got = run_logits(session(item.int8), feed)
    # Oracle 1: the file's meaning, every node run in float as it is written.
    plain = ort.SessionOptions()
    plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    as_written = ort.InferenceSession(str(item.int8), plain, providers=["CPUExecutionProvider"])
    assert cosine(got, run_logits(as_written, feed)) > 0.995
    # Oracle 2: the FP32 model; 52 layers of random weights forgive less rounding than few.
    near = 0.7 if family == "mobilenetv2" else 0.98
    assert cosine(got, run_logits(session(item.fp32), feed)) > near


def test_quantized_linear_equals_the_arithmetic_of_the_grids(tmp_path) -> None:
    """Oracle: integer products computed here, in numpy, from the grids."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8))
    grid = grid_of(model[0].weight.detach().numpy())
    with torch.no_grad():
        model[0].weight.copy_(torch.from_numpy(grid.values()))
    path, out = tmp_path / "f.onnx", tmp_path / "q.onnx"
    export_onnx(model, (torch.zeros(1, 16),), path, input_names=["x"])
    quantize_qdq(path, out, weights={"layer": grid}, ranges={"x": (-1.0, 3.0)}, activation="uint8")
    x = np.random.default_rng(0).uniform(-1.2, 3.2, (50, 16)).astype(np.float32)
    scale, zero = activation_grid(-1.0, 3.0, "uint8")
    x_int = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64) - int(zero)
    steps = scale * grid.scale
    bias = np.rint(model[0].bias.detach().numpy() / steps)
    expected = (x_int @ grid.integers.T.astype(np.int64) + bias) * steps
    np.testing.assert_allclose(run_logits(session(out), {"x": x}), expected, atol=1e-4)


def test_masked_zeros_are_zero_integers(exported, tmp_path) -> None:
    item: Exported = exported("resnet")
    grids = grids_of(item.fp32, zeros=0.75)
    model = load_model(item.fp32)
    for tensor in model.graph.initializer:  # an FP32 file whose weights are on the sparse grids
        if tensor.name in grids:
            values = grids[tensor.name].values()
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    sparse = tmp_path / "sparse.onnx"
    onnx.save(model, str(sparse))
    ranges = calibrate(sparse, [item.feed(4)])
    by_layer = {f"layer{i}": grid for i, grid in enumerate(grids.values())}  # found by numbers
    quantize_qdq(sparse, tmp_path / "q.onnx", weights=by_layer, ranges=ranges, activation="uint8")
    stored = initializers(load_model(tmp_path / "q.onnx"))
    for name, grid in grids.items():
        assert ((grid.integers == 0) == (array(stored[f"{name}_quantized"]) == 0)).all()
        assert (grid.integers == 0).mean() >= 0.7


def test_a_filled_zero_is_refused(exported, tmp_path) -> None:
    item: Exported = exported("deit")
    grids = grids_of(item.fp32)
    name = next(iter(grids))
    model = load_model(item.fp32)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            values = array(tensor).copy()
            values.flat[0] = 0  # pruned in the file, but the grid still holds a number
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, str(tmp_path / "f.onnx"))
    ranges = calibrate(tmp_path / "f.onnx", [item.feed(2)])
    with pytest.raises(QuantizationError, match="masked zero"):
        quantize_qdq(
            tmp_path / "f.onnx",
            tmp_path / "q.onnx",
            weights=grids,
            ranges=ranges,
            activation="uint8",
        )


def test_only_linear_and_conv_become_integer(quantized, tmp_path) -> None:
    item: Exported = quantized("bert")
    before = Counter(n.op_type for n in load_model(item.fp32).graph.node)
    after = Counter(n.op_type for n in load_model(item.int8).graph.node)
    for operator in ("Softmax", "LayerNormalization", "Gelu", "Add", "MatMul"):
        assert after[operator] == before[operator]
    ran = optimised_operators(item.int8, tmp_path)
    assert ran["MatMulIntegerToFloat"] == 12  # six Linear layers a block, two blocks
    assert ran["QGemm"] == 1  # the head
    assert ran["BiasGelu"] == 2  # the float fusions survive
    assert ran["LayerNormalization"] == 5 and not ran["SkipLayerNormalization"]
    assert not ran["DequantizeLinear"]
    # q, k and v read one quantized tensor: 4 inputs a block and the head's
    assert ran["QuantizeLinear"] == 9


def test_a_conv_network_stays_in_integers(quantized, tmp_path) -> None:
    ran = optimised_operators(quantized("resnet").int8, tmp_path)
    convs = sum(layer.is_conv for layer in layers(load_model(quantized("resnet").fp32)))
    assert ran["QLinearConv"] == convs and not ran["Conv"] and not ran["FusedConv"]
    assert ran["QLinearAdd"] == sum(
        n.op_type == "Add" for n in load_model(quantized("resnet").fp32).graph.node
    )
    assert not ran["Relu"]


def test_residual_additions_can_stay_float(exported, tmp_path) -> None:
    item: Exported = exported("resnet")
    ranges = calibrate(item.fp32, [item.feed(4)])
    out = tmp_path / "q.onnx"
    quantize_qdq(
        item.fp32,
        out,
        weights=grids_of(item.fp32),
        ranges=ranges,
        activation="uint8",
        residual="float",
    )
    ran = optimised_operators(out, tmp_path)
    assert ran["Add"] and not ran["QLinearAdd"] and not ran["Conv"]


@pytest.mark.parametrize("family", ["resnet", "bert"])
def test_int8_activations(exported, tmp_path, family: str) -> None:
    item: Exported = exported(family)
    feed = item.feed(8, seed=1)
    ranges = calibrate(item.fp32, [feed], activation="int8")
    out = tmp_path / "q.onnx"
    quantize_qdq(item.fp32, out, weights=grids_of(item.fp32), ranges=ranges, activation="int8")
    exact, got = torch_logits(item.model, feed), run_logits(session(out), feed)
    assert np.abs(got - exact).max() < 0.15 * np.abs(exact).max()
    zeros = [array(t) for t in initializers(load_model(out)).values() if t.name.endswith("_point")]
    assert all(z.dtype in (np.int8, np.int32) for z in zeros)


def test_layers_without_a_grid_stay_float(exported, tmp_path) -> None:
    item: Exported = exported("deit")
    ranges = calibrate(item.fp32, [item.feed(2)])
    grids = grids_of(item.fp32, head=False)
    skipped = next(iter(grids))
    out = tmp_path / "q.onnx"
    quantize_qdq(
        item.fp32, out, weights=grids, ranges=ranges, activation="uint8", exclude=[skipped]
    )
    stored = initializers(load_model(out))
    head = next(layer for layer in layers(load_model(out)) if layer.is_head)
    assert stored[head.weight].data_type == onnx.TensorProto.FLOAT
    assert stored[skipped].data_type == onnx.TensorProto.FLOAT
    assert sum(t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1 for t in stored.values())


def test_bad_grids_are_one_line(exported, tmp_path) -> None:
    item: Exported = exported("bert")
    ranges = calibrate(item.fp32, [item.feed(2)])
    grids = grids_of(item.fp32)
    name, grid = next(iter(grids.items()))

    def refused(weights: dict[str, WeightGrid], match: str, **changes: object) -> None:
        settings = {"ranges": ranges, "activation": "uint8", **changes}
        with pytest.raises(QuantizationError, match=match):
            quantize_qdq(item.fp32, tmp_path / "q.onnx", weights=weights, **settings)

    refused({name: WeightGrid(grid.integers.astype(np.int16), grid.scale)}, "int16")
    refused({name: WeightGrid(grid.integers[:3], grid.scale)}, "shape")
    refused({name: WeightGrid(grid.integers, grid.scale[:3])}, "one a row")
    refused({name: WeightGrid(grid.integers, -grid.scale)}, "positive")
    refused(grids, "no calibrated range", ranges={})
    refused(grids, "neither", activation="int4")
    refused(grids, "'nowhere'", exclude=["nowhere"])
    assert not list(tmp_path.iterdir())


def test_a_dead_channel_keeps_its_bias(tmp_path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].bias[1] = 0.73
    path, out = tmp_path / "f.onnx", tmp_path / "q.onnx"
    x = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    export_onnx(model, (torch.from_numpy(x),), path, input_names=["x"])
    grids = grids_of(path)
    first = next(iter(grids))
    scale = grids[first].scale.copy()
    scale[1] = 0.0  # what a solver may leave for a row without weights
    grids[first] = WeightGrid(grids[first].integers, scale)
    quantize_qdq(path, out, weights=grids, ranges=calibrate(path, [{"x": x}]), activation="uint8")
    got = run_logits(session(out), {"x": x})
    np.testing.assert_allclose(got, torch_logits(model, {"x": x}), atol=0.03)


@pytest.mark.parametrize("shrink", [1e-9, 1e-20])
def test_a_channel_all_but_dead_keeps_its_bias(tmp_path, shrink: float) -> None:
    """Its bias exceeds int32 on the grid; left float, ONNX Runtime would wrap it around."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    with torch.no_grad():
        model[0].weight[1] *= shrink
        model[0].bias[1] = 50.0
    path, out = tmp_path / "f.onnx", tmp_path / "q.onnx"
    x = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    export_onnx(model, (torch.from_numpy(x),), path, input_names=["x"])
    grids = grids_of(path)
    quantize_qdq(path, out, weights=grids, ranges=calibrate(path, [{"x": x}]), activation="uint8")
    got, exact = run_logits(session(out), {"x": x}), torch_logits(model, {"x": x})
    np.testing.assert_allclose(got, exact, atol=0.03 * np.abs(exact).max())
    stored = initializers(load_model(out))
    name = next(iter(grids))
    kept = array(stored[f"{name}_scale"]) == grids[name].scale
    assert kept.tolist() == [True, False, True, True]


class HasAStep(nn.Module):
    """Its parameter has the name that the step of its input would get."""

    def __init__(self) -> None:
        super().__init__()
        self.x_scale = nn.Parameter(torch.tensor(7.0))
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(x)) * self.x_scale)


def test_a_parameter_named_like_a_step_is_not_taken_for_one(tmp_path) -> None:
    path, out = tmp_path / "f.onnx", tmp_path / "q.onnx"
    export_onnx(HasAStep(), (torch.zeros(1, 8),), path, input_names=["x"])
    assert "x_scale" in initializers(load_model(path))
    x = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    settings = {"weights": grids_of(path), "ranges": calibrate(path, [{"x": x}])}
    with pytest.raises(QuantizationError, match=r"'x_scale' exists already.*parameter"):
        quantize_qdq(path, out, activation="uint8", **settings)
    assert not out.exists()


def test_an_input_that_was_always_zero(tmp_path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    path, out = tmp_path / "f.onnx", tmp_path / "q.onnx"
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    export_onnx(model, (torch.from_numpy(x),), path, input_names=["x"])
    ranges = calibrate(path, [{"x": x}])
    quantize_qdq(path, out, weights=grids_of(path), ranges=ranges, activation="uint8")
    got = run_logits(session(out), {"x": x})
    np.testing.assert_allclose(got, torch_logits(model, {"x": x}), atol=1e-2)


@pytest.mark.parametrize(
    ("low", "high", "activation", "zero"),
    [
        (-1, 3, "uint8", 64),
        (0, 6, "uint8", 0),
        (-2, 0, "uint8", 255),
        (0, 0, "uint8", 0),
        (-1, 3, "int8", 0),
        (0, 6, "int8", -128),
    ],
)
def test_activation_grid_holds_zero_exactly(low, high, activation, zero) -> None:
    scale, point = activation_grid(low, high, activation)
    assert point == zero and point.dtype == np.dtype(activation) and scale > 0
    if high > low:
        limits = np.iinfo(activation)
        # the range is covered to half a step at each end
        assert (limits.min - int(point)) * scale <= low + scale / 2
        assert (limits.max - int(point)) * scale >= high - scale / 2
