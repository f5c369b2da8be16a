from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from exports.graph import export_onnx
from exports.half import HalfError, activation_peaks, convert_half
from exports.onnxfile import initializers, load_model
from exports.runtime import run_logits, session
from models.text import TextClassifier

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


def places(path: Path, rows: int, tokens: int) -> np.ndarray:
    """The rows of the table of relative positions (of `rows` rows) that a text reads."""
    model = load_model(path)
    tables = {name for name, t in initializers(model).items() if list(t.dims) == [rows, 2]}
    (read,) = (n for n in model.graph.node if n.op_type == "Gather" and n.input[0] in tables)
    model.graph.output.append(helper.make_tensor_value_info(read.input[1], TensorProto.INT64, None))
    ones = np.ones((1, tokens), np.int64)
    feed = {"input_ids": 5 * ones, "attention_mask": ones}
    return session(model.SerializeToString()).run([read.input[1]], feed)[0]


def test_positions_made_whole_are_those_of_the_fp32_file(tmp_path) -> None:
    """MPNet's buckets of relative positions are a logarithm, rounded down."""
    config = transformers.MPNetConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=300,
    )
    config._attn_implementation = "eager"
    encoder = transformers.AutoModel.from_config(config, attn_implementation="eager")
    model, ids = TextClassifier(encoder, head=nn.Linear(32, 5)).eval(), torch.ones(2, 8).long()
    path, out = tmp_path / "f.onnx", tmp_path / "h.onnx"
    export_onnx(model, (ids, ids), path, input_names=["input_ids", "attention_mask"])
    report = convert_half(path, out)
    assert report.half > report.kept
    buckets = config.relative_attention_num_buckets
    for tokens in (32, 256):
        exact = places(path, buckets, tokens)
        assert len(np.unique(exact)) > 16 and np.array_equal(places(out, buckets, tokens), exact)


def test_what_is_rounded_is_computed_in_float(tmp_path) -> None:
    """2049 and 3 * 2049 lie between half numbers: the rest would not be zero."""
    nodes = [
        helper.make_node("Mul", ["x", "a"], ["large"]),
        helper.make_node("Floor", ["large"], ["whole"]),
        helper.make_node("Sub", ["whole", "b"], ["rest"]),
        helper.make_node("Floor", ["rest"], ["logits"]),
    ]
    constants = {"a": np.array([3.0], np.float32), "b": np.array([6147.0], np.float32)}
    path = graph(tmp_path / "f.onnx", nodes, constants)
    convert_half(path, tmp_path / "h.onnx")
    got = run_logits(session(tmp_path / "h.onnx"), {"x": np.full((1, 4), 2049, np.float32)})
    assert np.array_equal(got, np.zeros((1, 4)))


def test_a_quantized_graph_is_refused(quantized, tmp_path) -> None:
    with pytest.raises(HalfError, match="convert the FP32 file"):
        convert_half(quantized("deit").int8, tmp_path / "h.onnx")
