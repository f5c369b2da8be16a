from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exports.half import HalfError, activation_peaks, convert_half
from exports.onnxfile import initializers, load_model
from exports.runtime import run_logits, session

from .conftest import Exported

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def graph(
    path: Path, nodes: list[onnx.NodeProto], constants: Mapping[str, np.ndarray], width: int = 4
) -> Path:
    """A small graph x (batch, width) -> logits."""
    built = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("logits", FLOAT, ["batch", None])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("family", ["resnet", "convnext", "deit", "bert"])
def test_every_family_keeps_its_logits_types_and_half_its_bytes(exported, tmp_path, family) -> None:
    item: Exported = exported(family)
    out = tmp_path / "half.onnx"
    feed = item.feed(6)
    report = convert_half(item.fp32, out, feed=feed)
    onnx.checker.check_model(str(out), full_check=True)  # types of every tensor agree
    model, before = load_model(out), load_model(item.fp32)
    for ours, theirs in zip(
        (*model.graph.input, *model.graph.output),
        (*before.graph.input, *before.graph.output),
        strict=True,
    ):
        assert ours.name == theirs.name
        assert ours.type.tensor_type.elem_type == theirs.type.tensor_type.elem_type
    exact, got = run_logits(session(item.fp32), feed), run_logits(session(out), feed)
    assert got.dtype == np.float32
    assert report.max_abs == pytest.approx(np.abs(exact - got).max())
    assert report.max_abs <= 0.02 * np.abs(exact).max()
    assert not report.too_large and report.half > report.kept
    assert out.stat().st_size < 0.62 * item.fp32.stat().st_size
    large = [t for t in model.graph.initializer if t.data_type == FLOAT and np.prod(t.dims) > 600]
    assert not large  # only what normalisations read stays float32


def test_normalisation_and_softmax_stay_float(exported, tmp_path) -> None:
    item: Exported = exported("bert")
    for operators, expected in ((None, FLOAT), ((), HALF)):
        out = tmp_path / "half.onnx"
        keywords = {} if operators is None else {"float_operators": operators}
        convert_half(item.fp32, out, **keywords)
        inferred = onnx.shape_inference.infer_shapes(load_model(out)).graph
        types = {v.name: v.type.tensor_type.elem_type for v in inferred.value_info}
        nodes = [n for n in inferred.node if n.op_type in ("LayerNormalization", "Softmax")]
        assert len(nodes) == 7
        assert {types[n.output[0]] for n in nodes} == {expected}
        products = [n for n in inferred.node if n.op_type == "MatMul"]
        assert {types[n.output[0]] for n in products} == {HALF}


def test_padding_is_still_masked_out(exported, tmp_path) -> None:
    """The mask's -3.4e38 becomes the largest half number; padded tokens change nothing."""
    item: Exported = exported("bert")
    convert_half(item.fp32, tmp_path / "half.onnx")
    ids = np.arange(4, 12)[None]
    plain = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    padded = {name: np.pad(values, ((0, 0), (0, 5))) for name, values in plain.items()}
    opened = session(tmp_path / "half.onnx")
    gap = np.abs(run_logits(opened, plain) - run_logits(opened, padded)).max()
    assert gap < 2e-3


def test_a_weight_beyond_half_is_refused(tmp_path) -> None:
    weight = np.full((4, 3), 7e4, np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["logits"])]
    with pytest.raises(HalfError, match=r"'w'.*7e\+04.*65504"):
        convert_half(graph(tmp_path / "f.onnx", nodes, {"w": weight}), tmp_path / "h.onnx")


def test_an_activation_beyond_half_stays_float(tmp_path) -> None:
    """x * 1000 * 1000 / 1e5 overflows in the middle; the feed shows it."""
    thousand = np.full((4,), 1000, np.float32)
    nodes = [
        helper.make_node("Mul", ["x", "a"], ["once"]),
        helper.make_node("Mul", ["once", "a"], ["twice"]),
        helper.make_node("Div", ["twice", "b"], ["back"]),
        helper.make_node("MatMul", ["back", "w"], ["logits"]),
    ]
    constants = {
        "a": thousand,
        "b": np.full((4,), 5e4, np.float32),
        "w": np.eye(4, dtype=np.float32),
    }
    path = graph(tmp_path / "f.onnx", nodes, constants)
    feed = {"x": np.linspace(0.5, 2, 8, dtype=np.float32).reshape(2, 4)}
    assert activation_peaks(path, feed)["twice"] == pytest.approx(2e6)
    report = convert_half(path, tmp_path / "h.onnx", feed=feed)
    assert report.too_large == ("twice",) and (report.half, report.kept) == (2, 2)
    got = run_logits(session(tmp_path / "h.onnx"), feed)
    np.testing.assert_allclose(got, feed["x"] * 20, rtol=2e-3)


def test_an_epsilon_that_would_vanish_keeps_its_node_float(tmp_path) -> None:
    nodes = [
        helper.make_node("Sub", ["x", "x"], ["zero"]),
        helper.make_node("Add", ["zero", "epsilon"], ["small"]),
        helper.make_node("Div", ["zero", "small"], ["logits"]),
    ]
    path = graph(tmp_path / "f.onnx", nodes, {"epsilon": np.array(1e-12, np.float32)})
    feed = {"x": np.ones((2, 4), np.float32)}
    convert_half(path, tmp_path / "h.onnx")
    written = load_model(tmp_path / "h.onnx")
    assert initializers(written)["epsilon"].data_type == FLOAT
    adds = [node for node in written.graph.node if node.op_type == "Add"]
    assert adds[0].input[1] == "epsilon"
    # what divides by it must not get it as half numbers either
    divide = next(node for node in written.graph.node if node.op_type == "Div")
    assert divide.input[1] == "small" and adds[0].output[0] == "small"
    assert np.array_equal(run_logits(session(tmp_path / "h.onnx"), feed), np.zeros((2, 4)))


def test_a_quantized_graph_is_refused(quantized, tmp_path) -> None:
    with pytest.raises(HalfError, match="convert the FP32 file"):
        convert_half(quantized("deit").int8, tmp_path / "h.onnx")
