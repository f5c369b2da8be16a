from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from exports.attention import find_attention
from exports.calibrate import calibrate
from exports.census import census
from exports.forms import Route
from exports.fused import check_same_grids, fuse_linears, stored_grids
from exports.graph import export_onnx
from exports.grids import Activation, QuantizationError
from exports.masks import simplify_masks
from exports.microbench import lower_static, prepared
from exports.onnxfile import consumers, layers, load_model, save_model
from exports.parts import export_parts
from exports.quantize import quantize_qdq
from exports.routes import Candidate, best_int8, pick_route, ranges_by_activation, write_route
from exports.runtime import run_logits, session
from exports.tokens_first import tokens_first
from models.text import TextClassifier

from .conftest import Exported, grid_of, grids_of, images, texts
from .test_quantize import optimised_operators

BERT = {
    "vocab_size": 61,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
ATTENDING = ("deit", "bert", "distilbert")


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> Callable[..., Path]:
    """Write a route's file once, with ranges as those of the fixtures' static files."""
    folder = tmp_path_factory.mktemp("forms")
    ranges: dict[tuple[Path, str], dict[str, tuple[float, float]]] = {}
    written: dict[tuple[Path, str, str], Path] = {}

    def get(item: Exported, route: Route, activation: Activation = "uint8") -> Path:
        at, key = (item.fp32, activation), (item.fp32, route, activation)
        if at not in ranges:
            feeds = [item.feed(8, 1), item.feed(8, 2)]
            ranges[at] = calibrate(item.fp32, feeds, activation=activation)
        if key not in written:
            written[key] = folder / f"{len(written)}.onnx"
            differs = write_route(
                item.fp32,
                written[key],
                route=route,
                weights=item.grids,
                ranges=ranges[at],
                activation=activation,
            )
            assert differs == (route != "static")
        return written[key]

    return get


def feeds_of(item: Exported) -> list[dict[str, np.ndarray]]:
    """Batches of other sizes than the one traced, texts with padding."""
    if item.is_image:
        return [images(1, 3), images(3, 4)]
    return [texts(1, 5, 3), texts(3, 12, 4, padded=True), texts(2, 30, 5, padded=True)]


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in load_model(path).graph.node)


@pytest.mark.parametrize("family", ATTENDING)
def test_fused_computes_what_static_does(quantized, forms, tmp_path, family: str) -> None:
    item: Exported = quantized(family)
    fused = forms(item, "fused")
    static, rewritten = session(item.int8), session(fused)
    for feed in feeds_of(item):
        expected = run_logits(static, feed)
        got = run_logits(rewritten, feed)
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())
    count = operators(fused)
    kinds = Counter(layer.node.op_type for layer in layers(load_model(item.fp32)))
    assert count["MatMulIntegerToFloat"] == kinds["MatMul"]
    assert count["FusedMatMul"] == 2 * count["Softmax"] == 4  # both layers' attentions
    running = optimised_operators(fused, tmp_path)
    assert running["BiasGelu"] == 0  # the bias is inside the product
    before = optimised_operators(item.int8, tmp_path)
    assert running["Transpose"] <= before["Transpose"] - 4
    assert running.total() < before.total()


def test_int8_activations_compute_the_same(quantized, forms) -> None:
    item: Exported = quantized("bert")
    static = forms(item, "static", "int8")
    fused = forms(item, "fused", "int8")
    for feed in feeds_of(item):
        expected = run_logits(session(static), feed)
        got = run_logits(session(fused), feed)
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())


def test_a_dynamic_product_equals_the_arithmetic_of_the_grids(tmp_path) -> None:
    """Oracle: the range of each call, and integer products, computed here in numpy."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8))
    grid = grid_of(model[0].weight.detach().numpy())
    with torch.no_grad():
        model[0].weight.copy_(torch.from_numpy(grid.values()))
    path, out = tmp_path / "f.onnx", tmp_path / "q.onnx"

    class Tokens(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return model(x[:, None, :]).squeeze(1)  # three axes: a MatMul, not a Gemm

    export_onnx(Tokens(), (torch.zeros(1, 16),), path, input_names=["x"])
    product = next(n for n in load_model(path).graph.node if n.op_type == "MatMul")
    assert write_route(
        path,
        out,
        route="dynamic",
        weights={"layer": grid},
        ranges={product.input[0]: (-9.0, 9.0)},  # of no use to a dynamic product
        activation="uint8",
    )
    x = np.random.default_rng(0).uniform(-1.2, 3.2, (50, 16)).astype(np.float32)
    low, high = min(x.min(), 0), max(x.max(), 0)
    step = np.float32((high - low) / 255)
    zero = np.rint(-low / step)
    integers = np.clip(np.rint(x / step) + zero, 0, 255) - zero
    bias = model[0].bias.detach().numpy()
    expected = (integers @ grid.integers.T.astype(np.float64)) * step * grid.scale + bias
    np.testing.assert_allclose(run_logits(session(out), {"x": x}), expected, atol=1e-4)


@pytest.mark.parametrize("family", ["deit", "bert"])
def test_dynamic_stays_near_fp32(quantized, forms, family: str) -> None:
    item: Exported = quantized(family)
    dynamic = forms(item, "dynamic")
    assert operators(dynamic)["DynamicQuantizeMatMul"] > 0
    for feed in feeds_of(item):
        expected = run_logits(session(item.fp32), feed)
        got = run_logits(session(dynamic), feed)
        assert np.abs(got - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("family", ["deit", "bert"])
@pytest.mark.parametrize("route", ["fused", "dynamic"])
def test_every_route_is_counted_like_the_static_file(quantized, forms, family, route) -> None:
    item: Exported = quantized(family)
    out = forms(item, route)
    static, counts = census(item.int8), census(out)
    assert {**counts, "bytes": 0} == {**static, "bytes": 0}
    head = next(layer.weight for layer in layers(load_model(item.fp32)) if layer.is_head)
    by_content = {name: grid.values() for name, grid in item.grids.items() if name != head}
    assert census(out, by_content) == counts
    assert census(out, list(by_content)) == counts  # by the FP32 file's names
    kept = stored_grids(load_model(out))
    for name, grid in item.grids.items():
        integers, scale = kept[f"{name}_quantized"]
        turned = integers.ndim == 2 and name != head  # a MatMul's weight is (in, out)
        assert np.array_equal(integers.T if turned else integers, grid.integers)
        assert np.array_equal(scale, grid.scale)


def test_a_changed_integer_is_noticed(quantized) -> None:
    item: Exported = quantized("bert")
    before, after = load_model(item.int8), load_model(item.int8)
    fuse_linears(after)
    check_same_grids(before, after)
    name = next(layer.weight for layer in layers(after))
    tensor = next(t for t in after.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0] ^= 1
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    with pytest.raises(QuantizationError, match=name):
        check_same_grids(before, after)


@pytest.fixture(scope="module")
def class_token(tmp_path_factory) -> Exported:
    """A BERT whose classifier reads the first token only."""
    torch.manual_seed(0)
    config = transformers.BertConfig(**BERT)
    config._attn_implementation = "eager"
    encoder = transformers.AutoModel.from_config(config, attn_implementation="eager")
    model = TextClassifier(encoder, pooling="cls", head=nn.Linear(32, 5)).eval()
    folder = tmp_path_factory.mktemp("cls")
    path = folder / "f.onnx"
    feed = texts(1, 7)
    example = tuple(torch.from_numpy(values) for values in feed.values())
    export_onnx(model, example, path, input_names=list(feed))
    item = Exported(model, path, False, grids_of(path), folder / "q.onnx")
    ranges = calibrate(path, [item.feed(8, 1), item.feed(8, 2)])
    quantize_qdq(path, item.int8, weights=item.grids, ranges=ranges, activation="uint8")
    return item


def rows_of_products(path: Path, feed: dict[str, np.ndarray], folder: Path) -> list[int]:
    """How many rows every Linear multiplies: counted by running the graph."""
    model = load_model(path)
    names = [node.output[0] for node in model.graph.node if node.op_type == "MatMulIntegerToFloat"]
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 3) for name in names
    )
    save_model(model, folder / "spy.onnx")
    made = session(folder / "spy.onnx").run(names, feed)
    return [values.size // values.shape[-1] for values in made]


def test_a_class_token_alone_goes_through_the_last_layer(class_token, forms, tmp_path) -> None:
    item: Exported = class_token
    fused = forms(item, "fused")
    for feed in feeds_of(item):
        expected = run_logits(session(item.int8), feed)
        got = run_logits(session(fused), feed)
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())
    rows = rows_of_products(fused, texts(2, 10), tmp_path)
    # first layer: q, k, v, output, up, down for 20 tokens; last: k and v for 20, four for 2
    assert sorted(rows) == [2] * 4 + [20] * 8


def test_all_tokens_go_on_where_they_are_pooled(quantized, forms, tmp_path) -> None:
    fused = forms(quantized("bert"), "fused")
    assert rows_of_products(fused, texts(2, 10), tmp_path) == [20] * 12


def mask_graph(kind: str, limit: int = 0) -> onnx.ModelProto:
    """Scores plus a mask made of index arithmetic, and a Softmax.

    The mask is of padding only ('plain'), of what comes later too ('causal'), or of what is more
    than 8 tokens away ('window'); with a limit it has no rows for more tokens.
    """
    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["keep"], to=TensorProto.BOOL),
        helper.make_node("Unsqueeze", ["keep", "axes"], ["row"]),
        helper.make_node("Shape", ["attention_mask"], ["size"], start=1),
        helper.make_node("Squeeze", ["size"], ["length"]),
        helper.make_node("Range", ["zero", "length", "one"], ["places"]),
    ]
    places = "places"
    if limit:
        nodes.append(helper.make_node("Gather", ["table", "places"], ["looked_up"]))
        places = "looked_up"
    nodes += [
        helper.make_node("Unsqueeze", [places, "last"], ["query"]),
        helper.make_node("Sub", ["query", places], ["back"]),  # how far a key lies before
        helper.make_node("Abs", ["back"], ["far"]),
        helper.make_node("GreaterOrEqual", ["back", "zero"], ["causal"]),
        helper.make_node("LessOrEqual", ["far", "eight"], ["window"]),
        helper.make_node("GreaterOrEqual", ["far", "zero"], ["plain"]),
        helper.make_node("And", ["row", kind], ["both"]),
        helper.make_node("Where", ["both", "none", "least"], ["mask"]),
        helper.make_node("Add", ["scores", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["logits"], axis=-1),
    ]
    stored = {
        "axes": np.asarray([1, 2], np.int64),
        "last": np.asarray([1], np.int64),
        "zero": np.asarray(0, np.int64),
        "one": np.asarray(1, np.int64),
        "eight": np.asarray(8, np.int64),
        "table": np.arange(max(1, limit)),
        "none": np.asarray(0, np.float32),
        "least": np.asarray(np.finfo(np.float32).min),
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["b", 2, "t", "t"]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["b", "t"]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 2, "t", "t"])],
        [numpy_helper.from_array(values, name) for name, values in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("limit", [0, 21])
@pytest.mark.parametrize("kind", ["plain", "causal", "window"])
def test_only_a_padding_mask_is_simplified(kind: str, limit: int, capfd) -> None:
    model = mask_graph(kind, limit)
    before = session(model.SerializeToString())
    assert simplify_masks(model) == (1 if kind == "plain" else 0)
    assert capfd.readouterr() == ("", "")  # lengths that do not run are no news
    after = session(model.SerializeToString())
    scores = np.random.default_rng(0).standard_normal((2, 2, 20, 20)).astype(np.float32)
    mask = np.random.default_rng(1).integers(0, 2, (2, 20)) | (np.arange(20) < 1)
    feed = {"scores": scores, "attention_mask": mask}
    assert np.array_equal(before.run(None, feed)[0], after.run(None, feed)[0])
    if kind == "plain":
        assert len(model.graph.node) == 5


def test_a_mask_that_does_not_run_is_left_alone() -> None:
    assert simplify_masks(mask_graph("plain", limit=5)) == 0


def test_attention_whose_scores_are_read_elsewhere_is_left_alone(quantized) -> None:
    item: Exported = quantized("deit")
    model = load_model(item.int8)
    fuse_linears(model)
    assert len(find_attention(model)) == 2
    weights = next(node for node in model.graph.node if node.op_type == "Softmax").output[0]
    model.graph.output.append(helper.make_tensor_value_info(weights, TensorProto.FLOAT, None))
    assert len(find_attention(model)) == 1
    feed = images(2)
    expected = session(model.SerializeToString()).run(None, feed)
    assert tokens_first(model) == 1
    got = session(model.SerializeToString()).run(None, feed)
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-4 * np.abs(a).max())


def test_attention_with_one_head_width_for_keys_is_found_with_its_scale(quantized) -> None:
    model = load_model(quantized("bert").int8)
    found = find_attention(model)
    assert [len(item.sources) for item in found] == [3, 3]
    assert all(item.scale == pytest.approx(16**-0.5) and item.width == 16 for item in found)
    readers = consumers(model)
    assert all(readers[item.mask] for item in found)
    packed = find_attention(load_model(quantized("deit").int8))
    assert [(len(item.sources), item.heads, item.width) for item in packed] == [(1, 2, 16)] * 2


class Attends(nn.Module):
    """Attention written out, between Linears.

    Args:
        keys: heads of the keys and values; one serves all queries (multi-query).
        window: neighbouring tokens among which each attends; 0: all.
    """

    def __init__(self, keys: int = 4, window: int = 0) -> None:
        super().__init__()
        self.keys, self.window = keys, window
        self.query, self.out, self.head = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 5)
        self.key, self.value = nn.Linear(32, 8 * keys), nn.Linear(32, 8 * keys)
        for layer in (self.query, self.key):  # scores that differ, so that windows matter
            layer.weight.data *= 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        size = self.window or tokens
        q, k, v = (
            layer(x).view(batch * tokens // size, size, heads, 8).transpose(1, 2)
            for layer, heads in ((self.query, 4), (self.key, self.keys), (self.value, self.keys))
        )
        mixed = (q @ k.transpose(2, 3) * 8**-0.5).softmax(-1) @ v
        merged = mixed.transpose(1, 2).reshape(batch, tokens, width)
        return self.head(torch.relu(self.out(merged) + x).mean(1))


class Cuts(Attends):
    """Windows that are cut before they are projected, and joined as the heads are merged."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        cut = x.reshape(batch * tokens // 4, 4, width)
        q, k, v = (
            layer(cut).view(batch * tokens // 4, 4, 4, 8).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = (q @ k.transpose(2, 3) * 8**-0.5).softmax(-1) @ v
        merged = mixed.transpose(1, 2).reshape(batch, tokens, width)
        return self.head(torch.relu(self.out(merged) + x).mean(1))


@pytest.mark.parametrize(
    ("model", "rewritten"),
    [(Attends(), 1), (Attends(window=4), 0), (Attends(keys=1), 0), (Cuts(), 0)],
    ids=["plain", "windows", "multi-query", "cut before"],
)
def test_only_attention_over_all_tokens_with_heads_of_its_own_is_rewritten(
    tmp_path, model: nn.Module, rewritten: int
) -> None:
    path, x = tmp_path / "f.onnx", torch.randn(3, 16, 32, generator=torch.manual_seed(0))
    export_onnx(model, (x,), path, input_names=["x"])
    grids, feed = grids_of(path), {"x": x.numpy()}
    ranges = ranges_by_activation(path, [feed], weights=list(grids))
    out = tmp_path / "q.onnx"
    quantize_qdq(path, out, weights=grids, ranges=ranges["uint8"], activation="uint8")
    static = run_logits(session(out), feed)
    graph = load_model(out)
    fuse_linears(graph)
    assert tokens_first(graph) == rewritten
    got = run_logits(session(graph.SerializeToString()), feed)
    np.testing.assert_allclose(got, static, atol=1e-4 * np.abs(static).max())
    choice = best_int8(path, out, weights=grids, ranges=ranges, feed=feed, repeats=3)
    assert not any("does not run" in row.rejected for row in choice.candidates)


@pytest.mark.parametrize("family", ["deit", "bert"])
def test_a_part_that_is_timed_by_itself_is_rewritten_as_in_its_network(
    exported, tmp_path, family: str
) -> None:
    model = exported(family).model
    block = model.blocks[0] if family == "deit" else model.encoder.encoder.layer[0]
    x = torch.randn(1, 17, 32)
    files = export_parts({"block": (block, x)}, tmp_path)
    bench = prepared(files["block"], x.numpy(), chained=False)
    lower_static("uint8", "int8")(bench.path, tmp_path / "q.onnx")
    graph = load_model(tmp_path / "q.onnx")
    fuse_linears(graph)
    assert tokens_first(graph) == bench.copies


def scaled(path: Path, *factors: float, divided: bool = False) -> Path:
    """A file whose logits are its input times factors (or 0 / 0 where an input is 0)."""
    nodes = [helper.make_node("Mul", ["x", "k"], ["logits"])]
    if divided:
        nodes = [
            helper.make_node("Mul", ["x", "k"], ["y"]),
            helper.make_node("Div", ["y", "x"], ["one"]),
            helper.make_node("Mul", ["one", "x"], ["logits"]),
        ]
    shape = ["b", len(factors)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(factors, np.float32), "k")],
    )
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    return path


@pytest.mark.parametrize("first", ["static", "fused"])
def test_logits_that_are_not_finite_are_never_chosen(tmp_path, first: str) -> None:
    exact = scaled(tmp_path / "f.onnx", 1, 1, 1)
    good, bad = scaled(tmp_path / "good.onnx", 1.01, 1, 1), tmp_path / "bad.onnx"
    feed = {"x": np.asarray([[3, 1, 2]], np.float32)}
    zero = {"x": np.asarray([[0, 1, 2]], np.float32)}  # 0 / 0 shows in the samples only
    for broken, samples in (
        (scaled(bad, float("nan"), 1, 1), [feed]),
        (scaled(tmp_path / "zero.onnx", 1, 1, 1, divided=True), [feed, zero]),
    ):
        files = {
            Candidate(route, "uint8"): good if route == "static" else broken
            for route in sorted(("static", "fused"), key=lambda route: route != first)
        }
        choice = pick_route(files, exact, feed, samples=samples, repeats=3)
        assert choice.chosen.route == "static"
        assert [row.rejected for row in choice.candidates] == ["", "its logits are not finite"]
        only = {Candidate("fused", "uint8"): broken}
        with pytest.raises(QuantizationError, match=r"no INT8 route works.*not finite"):
            pick_route(only, exact, feed, samples=samples, repeats=3)


def test_a_file_that_loads_and_does_not_run_is_rejected(tmp_path) -> None:
    exact = scaled(tmp_path / "f.onnx", 1, 1, 1)
    model = load_model(exact)  # adds a number a row: broadcasts for one or three rows only
    model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 1), np.float32), "rows"))
    model.graph.node[0].output[0] = "y"
    model.graph.node.append(helper.make_node("Mul", ["y", "rows"], ["logits"]))
    onnx.save(model, str(tmp_path / "rows.onnx"))
    files = {
        Candidate("static", "uint8"): tmp_path / "rows.onnx",
        Candidate("fused", "uint8"): exact,
    }
    for rows, reason in ((2, "does not run"), (1, r"shape \(3, 3\)")):
        feed = {"x": np.ones((rows, 3), np.float32)}
        choice = pick_route(files, exact, feed, repeats=3)
        assert choice.chosen.route == "fused"
        (rejected,) = [row.rejected for row in choice.candidates if row.route == "static"]
        assert re.search(reason, rejected)


def test_one_pass_calibrates_for_both_types(exported) -> None:
    item: Exported = exported("resnet")
    feeds = [item.feed(4, 1), item.feed(4, 2)]
    names = [layer.weight for layer in layers(load_model(item.fp32))]
    both = ranges_by_activation(item.fp32, feeds, weights=names, rule="mse")
    for kind in ("uint8", "int8"):
        alone = calibrate(item.fp32, feeds, rule="mse", activation=kind)
        assert {name: both[kind][name] for name in alone} == alone


@pytest.mark.parametrize("family", ["resnet", "bert"])
def test_the_best_form_is_written(exported, tmp_path, family: str) -> None:
    item: Exported = exported(family)
    grids = grids_of(item.fp32)
    feeds = [item.feed(8, 1), item.feed(8, 2)]
    ranges = ranges_by_activation(item.fp32, feeds, weights=list(grids))
    out = tmp_path / "out.onnx"
    choice = best_int8(
        item.fp32, out, weights=grids, ranges=ranges, feed=item.feed(1), samples=feeds, repeats=5
    )
    rows = {row.name: row for row in choice.candidates}
    assert choice.chosen == rows[choice.chosen.name]
    assert not choice.chosen.rejected
    timed = [row for row in choice.candidates if not row.rejected]
    assert choice.chosen.milliseconds <= 1.02 * min(row.milliseconds for row in timed)
    expected = run_logits(session(item.fp32), feeds)
    got = run_logits(session(out), feeds)
    assert float(np.abs(got - expected).max()) == pytest.approx(choice.chosen.gap)
    assert (got.argmax(-1) == expected.argmax(-1)).mean() == choice.chosen.agreement
    if family == "resnet":  # nothing to fuse; a pooled float stem has the ranges it needs
        assert "nothing to rewrite" in rows["fused-uint8"].rejected
        assert any(row.stem == "float" and row.milliseconds > 0 for row in timed)
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]
    report = choice.to_dict()
    assert report["route"] == choice.chosen.route
    assert len(report["tried"]) == len(choice.candidates)


def test_a_fast_file_that_is_far_off_is_not_chosen(exported, tmp_path) -> None:
    item: Exported = exported("bert")
    model = load_model(item.fp32)
    for node in list(model.graph.node):  # a shortcut: the classifier reads nothing but zeros
        if node.output[0] == model.graph.output[0].name:
            node.input[1] = "nothing"
    shape = next(t.dims for t in load_model(item.fp32).graph.initializer if list(t.dims) == [5, 32])
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(shape, np.float32), "nothing"))
    onnx.save(model, str(tmp_path / "wrong.onnx"))
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    right, wrong = Candidate("static", "uint8"), Candidate("dynamic", "uint8")
    broken = Candidate("fused", "uint8")
    choice = pick_route(
        {
            wrong: tmp_path / "wrong.onnx",
            broken: tmp_path / "broken.onnx",
            right: item.fp32,
        },
        item.fp32,
        item.feed(1),
        samples=[item.feed(16)],
        repeats=3,
    )
    assert choice.chosen.route == "static"
    assert (choice.chosen.gap, choice.chosen.agreement) == (0, 1)
    reasons = {row.route: row.rejected for row in choice.candidates}
    assert "labels agree" in reasons["dynamic"]
    assert "does not load" in reasons["fused"]


def test_no_usable_route_is_an_error_that_says_why(exported, tmp_path) -> None:
    item: Exported = exported("bert")
    grids = grids_of(item.fp32)
    with pytest.raises(QuantizationError, match="no calibrated range"):
        best_int8(item.fp32, tmp_path / "o", weights=grids, ranges={"uint8": {}}, feed=item.feed(1))
    with pytest.raises(QuantizationError, match="no activation type has ranges"):
        best_int8(item.fp32, tmp_path / "o", weights=grids, ranges={}, feed=item.feed(1))
