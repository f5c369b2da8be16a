from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exports.alike import Known, laid_out, layouts, relative_error, rounding_error, weight_error
from exports.calibrate import calibrate
from exports.departure import FLOAT, HALF, INT8, first_departure
from exports.embeddings import EmbeddingGrid, embedding_tables, quantize_embeddings
from exports.forms import Route, write_route
from exports.half import convert_half
from exports.onnxfile import array, initializers, layers, load_model
from exports.pairing import Pair
from exports.runtime import run_logits, session
from exports.spying import read_weights, spied
from exports.weightonly import BlockGrid, quantize_weight_only

from .conftest import IMAGE_FAMILIES, TEXT_FAMILIES, Exported

RANDOM = np.random.default_rng(0)


def edit(path: Path, out: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    model = load_model(path)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    values = np.ascontiguousarray(change(numpy_helper.to_array(tensor).copy()))
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, str(out))
    return out


# --- alike --------------------------------------------------------------------------------------


def test_relative_error_is_the_quotient_of_the_norms() -> None:
    expected = RANDOM.standard_normal((3, 4)).astype(np.float32)
    assert relative_error(expected, expected) == 0
    assert relative_error(1.25 * expected, expected) == pytest.approx(0.25)
    assert relative_error(np.zeros(3), np.zeros(3)) == 0
    assert relative_error(np.ones(3), np.zeros(3)) == np.inf


def test_masks_and_nans_do_not_confuse_the_error() -> None:
    least = np.finfo(np.float32).min
    assert relative_error(np.array([0, least]), np.array([0, least])) == 0
    assert relative_error(np.array([1.5, -np.inf]), np.array([1.0, -np.inf])) == pytest.approx(0.5)
    assert relative_error(np.array([1.0, np.nan]), np.array([1.0, 2.0])) == np.inf
    assert relative_error(np.array([1.0, -np.inf]), np.array([1.0, 2.0])) == np.inf
    assert relative_error(np.array([1.0, least]), np.array([1.0, 0.5 * least])) == pytest.approx(1)


def test_a_clipped_outlier_is_forgiven_and_clipping_at_large_is_not() -> None:
    values = RANDOM.standard_normal(1000)
    values[7] = 100
    assert relative_error(np.clip(values, -4, 4), values) > 0.9
    assert rounding_error(np.clip(values, -4, 4), values) < 0.01
    values[7] = 1
    assert rounding_error(np.clip(values, 0, None), values) > 0.6  # a lost zero point
    assert rounding_error(np.clip(values, -1, 1), values) > 0.3
    assert rounding_error(np.full(3, np.nan), np.ones(3)) == np.inf


def test_one_wrong_scale_of_many_shows_in_the_weight_error() -> None:
    weight = RANDOM.standard_normal((64, 32))
    rounded = weight + 0.02 * RANDOM.standard_normal((64, 32))
    doubled = rounded.copy()
    doubled[5] *= 2
    assert weight_error(rounded, weight, 0) < 0.05
    assert weight_error(doubled, weight, 0) == pytest.approx(1, abs=0.05)
    assert weight_error(doubled.T, weight.T, 1) == weight_error(doubled, weight, 0)
    assert relative_error(doubled, weight) < 0.2  # the whole weight's error hides it
    assert weight_error(weight[:, ::-1], weight, 0) > 0.5


def test_a_solver_that_makes_up_for_its_rounding_is_not_a_wrong_scale() -> None:
    weight = RANDOM.standard_normal((64, 256))
    moved = weight + 0.5 * RANDOM.standard_normal((64, 256))  # half of its length, sideways
    assert weight_error(moved, weight, 0) < 0.2
    cleared = moved.copy()
    cleared[:, ::2] = 0  # inputs that are always zero
    assert weight_error(cleared, weight, 0) < 0.2
    assert weight_error(np.zeros_like(weight), weight, 0) == np.inf
    dead = weight.copy()
    dead[3] = 1e-7
    wiped = dead.copy()
    wiped[3] = 0
    assert weight_error(wiped, dead, 0) < 1e-3  # a channel of no consequence


@pytest.mark.parametrize(
    ("order", "cut"),
    [((0, 1, 2), slice(None)), ((1, 0, 2), slice(None)), ((1, 0, 2), slice(0, 1))],
)
def test_a_layout_is_found_again(order: tuple[int, ...], cut: slice) -> None:
    values = RANDOM.standard_normal((3, 7, 5))
    turned = values.transpose(order)[cut]
    found = laid_out(values, turned)
    assert found is not None and np.array_equal(found, turned)
    assert Known([RANDOM.standard_normal(105), values]).error(turned, 1e-6) in (0, None)


def test_an_equal_shape_excuses_no_other_order() -> None:
    values = RANDOM.standard_normal((6, 6))
    found = laid_out(values, values.T)
    assert found is not None and np.array_equal(found, values)
    assert laid_out(values, np.zeros(7)) is None
    assert [option.shape for option in layouts(values, (36,))] == [(36,)]


# --- graphs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*IMAGE_FAMILIES, *TEXT_FAMILIES])
def test_looking_inside_changes_nothing(exported, family: str) -> None:
    item: Exported = exported(family)
    feed, model = item.feed(3, 5), load_model(item.fp32)
    made = spied(model, feed)
    assert set(made) == {name for node in model.graph.node for name in node.output if name}
    expected = run_logits(session(item.fp32), feed)
    output = model.graph.output[0].name
    np.testing.assert_allclose(made[output], expected, atol=1e-4 * np.abs(expected).max())
    # given its own tensors, every node makes them again: given tensors are read, not ignored
    floats = {name: x for name, x in made.items() if x.dtype == np.float32}
    again = spied(model, feed, floats)
    assert all(
        np.allclose(again[name], x, atol=1e-5 * np.abs(x).max()) for name, x in floats.items()
    )
    last = layers(model)[-1].node.input[0]
    other = spied(model, feed, {last: np.zeros_like(made[last])})
    assert not np.allclose(other[output], made[output], atol=1e-3)
    assert np.array_equal(other[last], made[last])


@pytest.fixture(scope="module")
def forms(quantized, tmp_path_factory) -> Callable[[str, Route], Path]:
    folder = tmp_path_factory.mktemp("forms")

    def get(family: str, route: Route) -> Path:
        item: Exported = quantized(family)
        out = folder / f"{family}-{route}.onnx"
        if not out.is_file():
            ranges = calibrate(item.fp32, [item.feed(8, 1), item.feed(8, 2), item.feed(8, 3)])
            write_route(
                item.fp32,
                out,
                route=route,
                weights=item.grids,
                ranges=ranges,
                activation="uint8",
            )
        return out

    return get


FORMS = [(family, "static") for family in IMAGE_FAMILIES] + [
    (family, route)
    for family in ("deit", "bert", "distilbert", "roberta")
    for route in ("fused", "dynamic")
]


@pytest.mark.parametrize(("family", "route"), FORMS)
def test_healthy_int8_departs_nowhere_and_nearly_all_of_it_is_looked_at(
    quantized, forms, family: str, route: Route
) -> None:
    item: Exported = quantized(family)
    feed = item.feed(3, 3)
    assert first_departure(item.fp32, forms(family, route), feed, tolerance=INT8) is None
    pair = Pair(item.fp32, forms(family, route), feed)
    checked = {check.node.output[0] for check in pair.checks()}
    weighted = {layer.node.output[0] for layer in layers(pair.model)}
    assert weighted <= checked
    worst = {check.kind: check.local for check in sorted(pair.checks(), key=lambda x: x.local)}
    assert worst["weight"] < 0.05 and worst.get("float", 0) < 0.02 and worst["rounding"] < 0.3


@pytest.mark.parametrize(("family", "route"), FORMS)
def test_a_wrong_scale_in_any_layer_names_that_layer(
    quantized, forms, tmp_path: Path, family: str, route: Route
) -> None:
    item: Exported = quantized(family)
    path, feed = forms(family, route), item.feed(3, 3)
    for at in RANDOM.choice(len(item.grids), 3, replace=False):
        layer = layers(load_model(path))[at]
        scale = layer.weight.removesuffix("_quantized") + "_scale"

        def halve(values: np.ndarray) -> np.ndarray:
            values[-1] *= 0.5
            return values

        bad = edit(path, tmp_path / "bad.onnx", scale, halve)
        found = first_departure(item.fp32, bad, feed, tolerance=INT8)
        assert found is not None
        assert found["tensor"].startswith(layer.weight.removesuffix("_quantized"))
        assert found["error"] > 0.4 and found["error_before"] == 0


def test_rounding_that_piled_up_is_not_held_against_a_node(
    quantized, forms, tmp_path: Path
) -> None:
    """A fault late in the graph: what comes before it carries errors and is not named."""
    item: Exported = quantized("bert")
    path = forms("bert", "fused")
    layer = [x for x in layers(load_model(path)) if x.node.op_type == "MatMulIntegerToFloat"][-1]
    bad = edit(path, tmp_path / "bad.onnx", layer.node.input[3], lambda values: values * 4)
    found = first_departure(item.fp32, bad, item.feed(3, 3), tolerance=INT8)
    assert found is not None and found["tensor"] == layer.weight
    other = tmp_path / "norm.onnx"
    model = load_model(path)
    norm = [node for node in model.graph.node if node.op_type == "LayerNormalization"][-1]
    edit(path, other, norm.input[1], lambda values: values[::-1])
    found = first_departure(item.fp32, other, item.feed(3, 3), tolerance=INT8)
    assert found is not None
    assert found["name"] == norm.name and found["op"] == "LayerNormalization"
    assert found["error"] > 2 * found["error_before"] > 0


@pytest.mark.parametrize("family", ["deit", "bert"])
def test_a_fault_inside_an_attention_names_its_node(
    quantized, forms, tmp_path: Path, family: str
) -> None:
    item: Exported = quantized(family)
    for kind in ("FusedMatMul", "Softmax", "Transpose"):
        model = load_model(forms(family, "fused"))
        inner = [node for node in model.graph.node if "/" in node.output[0]]
        node = next(node for node in inner if node.op_type == kind)
        attributes = {item.name: item for item in node.attribute}
        if kind == "FusedMatMul":
            attributes["alpha"].f *= 300  # random weights attend to everything alike
        elif kind == "Softmax":
            node.op_type = "LogSoftmax"
        else:
            attributes["perm"].ints[:] = [2, 0, 3, 1]
        onnx.save(model, str(tmp_path / "bad.onnx"))
        found = first_departure(item.fp32, tmp_path / "bad.onnx", item.feed(3, 3), tolerance=INT8)
        assert found is not None, kind
        # heads in another order are right until they are merged: the next node may be named
        names = [node.name, *(n.name for n in model.graph.node if node.output[0] in n.input)]
        assert found["name"] in names[: 2 if kind == "Transpose" else 1]


def test_half_precision_departs_nowhere_until_it_is_damaged(exported, tmp_path: Path) -> None:
    for family in ("resnet", "deit", "bert"):
        item: Exported = exported(family)
        half, feed = tmp_path / "half.onnx", item.feed(3, 3)
        convert_half(item.fp32, half, feed=feed)
        assert first_departure(item.fp32, half, feed, tolerance=HALF) is None
        layer = layers(load_model(half))[2]
        bad = edit(half, tmp_path / "bad.onnx", layer.weight, lambda values: values[::-1])
        found = first_departure(item.fp32, bad, feed, tolerance=HALF)
        assert found is not None and found["name"] == layer.node.name


def test_four_bit_products_and_tables_are_looked_at(exported, tmp_path: Path) -> None:
    item: Exported = exported("bert")
    feed, out = item.feed(3, 3), tmp_path / "int4.onnx"
    model = load_model(item.fp32)
    stored, grids = initializers(model), {}
    for layer in layers(model):
        weight = array(stored[layer.weight])
        weight = weight.T if layer.rows_axis == 1 else weight  # (out, in)
        blocks = np.abs(weight.reshape(len(weight), -1, 16)).max(axis=2)  # (out, in / 16)
        scale = (blocks / 7).astype(np.float32)
        integers = np.rint(weight / scale.repeat(16, axis=1)).astype(np.int8)
        grids[layer.weight] = BlockGrid(integers, scale, 16)
    quantize_weight_only(item.fp32, out, weights=grids)
    tables = {}
    for name in embedding_tables(out):
        table = array(stored[name])
        scale = (np.abs(table.reshape(len(table), -1, 16)).max(axis=2) / 7).astype(np.float32)
        scale = np.where(scale > 0, scale, 1).astype(np.float32)
        integers = np.rint(table / scale.repeat(16, axis=1)).astype(np.int8)
        tables[name] = EmbeddingGrid(integers, scale, 16, 4)
    quantize_embeddings(out, out, tables)
    assert first_departure(item.fp32, out, feed, tolerance=INT8) is None
    written = load_model(out)
    products = [node for node in written.graph.node if node.op_type == "MatMulNBits"]
    assert set(read_weights(written)) == {node.output[0] for node in products}
    bad = edit(out, tmp_path / "bad.onnx", products[3].input[2], lambda scale: scale * 2)
    found = first_departure(item.fp32, bad, feed, tolerance=INT8)
    assert found is not None and found["op"] == "MatMulNBits"
    assert found["tensor"] == products[3].input[1]
    lookup = next(node for node in written.graph.node if node.op_type == "GatherBlockQuantized")
    bad = edit(out, tmp_path / "bad.onnx", lookup.input[2], lambda scale: scale * 2)
    found = first_departure(item.fp32, bad, feed, tolerance=INT8)
    assert found is not None and found["tensor"] == lookup.output[0]


def test_other_names_are_matched_by_their_numbers(exported, tmp_path: Path) -> None:
    """Another exporter's names: every tensor is renamed, and a weight then damaged."""
    item: Exported = exported("bert")
    feed, model = item.feed(3, 3), load_model(item.fp32)
    kept = {value.name for value in (*model.graph.input, *model.graph.output)} | {""}
    names = {name for node in model.graph.node for name in (*node.input, *node.output)} - kept
    new = {name: f"t{index}" for index, name in enumerate(sorted(names))}
    for node in model.graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    for tensor in model.graph.initializer:
        tensor.name = new.get(tensor.name, tensor.name)
    path = tmp_path / "renamed.onnx"
    onnx.save(model, str(path))
    assert first_departure(item.fp32, path, feed, tolerance=FLOAT) is None
    layer = layers(load_model(path))[4]
    bad = edit(path, tmp_path / "bad.onnx", layer.weight, lambda weight: weight[::-1])
    found = first_departure(item.fp32, bad, feed, tolerance=FLOAT)
    assert found is not None and found["name"] == layer.node.name
    assert found["error_before"] < FLOAT.floats < found["error"]
