from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from exports.census import census
from exports.graph import export_onnx
from exports.grids import QuantizationError
from exports.onnxfile import (
    array,
    attribute,
    initializers,
    layers,
    load_model,
    packed_integers,
)
from exports.runtime import run_logits, session
from exports.weightonly import BlockGrid, quantize_weight_only

from .conftest import Exported


def block_grid(weight: np.ndarray, block: int = 16, zeros: float = 0.0, bits: int = 4) -> BlockGrid:
    """Round to nearest, a scale a block of columns, after zeroing a share of the weights."""
    if zeros:
        weight = np.where(np.random.default_rng(0).random(weight.shape) < zeros, 0, weight)
    rows, columns = weight.shape
    blocks = -(-columns // block)
    whole = np.zeros((rows, blocks * block), np.float32)
    whole[:, :columns] = weight
    parts = whole.reshape(rows, blocks, block)
    top = np.abs(parts).max(axis=2)
    scale = np.where(top > 0, top / (2 ** (bits - 1) - 1), 1e-3).astype(np.float32)
    integers = np.rint(parts / scale[..., None]).astype(np.int8).reshape(rows, -1)[:, :columns]
    return BlockGrid(integers, scale, block, bits)


def on_grid(
    item: Exported, path: Path, zeros: float = 0.0, widths: tuple[int, ...] = (4,)
) -> dict[str, BlockGrid]:
    """Write the FP32 file with its Linear weights on grids, widths in turn; by initializer."""
    model = load_model(item.fp32)
    stored, grids = initializers(model), {}
    for layer in layers(model):
        if layer.is_conv:
            continue
        weight = array(stored[layer.weight])
        matrix = weight.T if layer.rows_axis == 1 else weight
        grid = block_grid(matrix, zeros=zeros, bits=widths[len(grids) % len(widths)])
        values = grid.values().T if layer.rows_axis == 1 else grid.values()
        tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(values), layer.weight)
        stored[layer.weight].CopyFrom(tensor)
        grids[layer.weight] = grid
    onnx.save(model, str(path))
    return grids


@pytest.mark.parametrize("columns", [32, 40])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_product_equals_the_arithmetic_of_the_grid(tmp_path, columns, bias, bits) -> None:
    """Oracle: numpy; 40 columns leave half of the last block empty."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(columns, 24, bias=bias))
    grid = block_grid(model[0].weight.detach().numpy(), bits=bits)
    with torch.no_grad():
        model[0].weight.copy_(torch.from_numpy(grid.values()))
    fp32, out = tmp_path / "f.onnx", tmp_path / "q.onnx"
    export_onnx(model, (torch.zeros(1, 5, columns),), fp32, input_names=["x"])
    quantize_weight_only(fp32, out, weights={"layer": grid}, accuracy_level=1)
    assert [node.op_type for node in load_model(out).graph.node] == ["MatMulNBits"]
    x = np.random.default_rng(0).standard_normal((3, 5, columns)).astype(np.float32)
    expected = x @ grid.values().T + (model[0].bias.detach().numpy() if bias else 0)
    np.testing.assert_allclose(run_logits(session(out), {"x": x}), expected, atol=1e-5)


@pytest.mark.parametrize("family", ["deit", "bert"])
def test_a_network_keeps_its_logits(exported, tmp_path, family: str) -> None:
    item: Exported = exported(family)
    grids = on_grid(item, tmp_path / "f.onnx")
    feed = item.feed(6)
    exact = run_logits(session(tmp_path / "f.onnx"), feed)
    for level, tolerance in ((1, 1e-4), (4, 0.05)):
        out = tmp_path / f"q{level}.onnx"
        quantize_weight_only(tmp_path / "f.onnx", out, weights=grids, accuracy_level=level)
        got = run_logits(session(out), feed)
        assert np.abs(got - exact).max() <= tolerance * np.abs(exact).max()
    operators = [node.op_type for node in load_model(out).graph.node]
    assert operators.count("MatMulNBits") == len(grids)
    by_numbers = {f"layer{i}": grid for i, grid in enumerate(grids.values())}
    quantize_weight_only(tmp_path / "f.onnx", tmp_path / "n.onnx", weights=by_numbers)
    assert (tmp_path / "n.onnx").read_bytes() == out.read_bytes()


@pytest.mark.parametrize("family", ["deit", "bert"])
def test_layers_of_several_widths_keep_the_logits(exported, tmp_path, family: str) -> None:
    item: Exported = exported(family)
    grids = on_grid(item, tmp_path / "f.onnx", widths=(8, 4, 2))
    assert {grid.bits for grid in grids.values()} == {2, 4, 8}
    feed = item.feed(6)
    exact = run_logits(session(tmp_path / "f.onnx"), feed)
    for level, tolerance in ((1, 1e-4), (4, 0.05)):
        out = tmp_path / f"q{level}.onnx"
        quantize_weight_only(tmp_path / "f.onnx", out, weights=grids, accuracy_level=level)
        got = run_logits(session(out), feed)
        assert np.abs(got - exact).max() <= tolerance * np.abs(exact).max()
    model = load_model(out)
    stored = initializers(model)
    for layer in layers(model):
        if layer.node.op_type != "MatMulNBits":
            continue
        grid = grids[layer.weight.removesuffix("_quantized")]
        assert attribute(layer.node, "bits") == grid.bits
        packed = array(stored[layer.weight])
        assert packed.nbytes == grid.scale.size * grid.block * grid.bits // 8
        assert np.array_equal(packed_integers(layer.node, packed), grid.integers)
    before, after = census(tmp_path / "f.onnx"), census(out)
    assert after.pop("bytes") < before.pop("bytes") and after == before


def test_the_census_counts_what_is_packed(exported, tmp_path) -> None:
    item: Exported = exported("deit")
    grids = on_grid(item, tmp_path / "f.onnx", zeros=0.6)
    quantize_weight_only(tmp_path / "f.onnx", tmp_path / "q.onnx", weights=grids)
    before, after = census(tmp_path / "f.onnx"), census(tmp_path / "q.onnx")
    assert after.pop("bytes") < 0.5 * before.pop("bytes")
    assert after == before
    by_numbers = census(tmp_path / "q.onnx", {n: g.values() for n, g in grids.items()})
    zeros = sum(int((grid.integers == 0).sum()) for grid in grids.values())
    assert by_numbers["prunable"] - by_numbers["prunable_nonzero"] == zeros
    model = load_model(tmp_path / "q.onnx")
    stored = initializers(model)
    found = {layer.weight.removesuffix("_quantized"): layer for layer in layers(model)}
    for name, grid in grids.items():
        packed = array(stored[f"{name}_quantized"])
        assert np.array_equal(packed_integers(found[name].node, packed), grid.integers)
    heads = [name for name, layer in found.items() if layer.is_head]
    assert heads == [layer.weight for layer in layers(load_model(item.fp32)) if layer.is_head]


def test_what_is_left_out_stays_float(exported, tmp_path) -> None:
    item: Exported = exported("bert")
    grids = on_grid(item, tmp_path / "f.onnx")
    skipped = next(iter(grids))
    out = tmp_path / "q.onnx"
    quantize_weight_only(tmp_path / "f.onnx", out, weights=grids, exclude=[skipped])
    stored = initializers(load_model(out))
    assert skipped in stored and f"{skipped}_quantized" not in stored


def test_bad_grids_are_refused(exported, tmp_path) -> None:
    item: Exported = exported("deit")
    grids = on_grid(item, tmp_path / "f.onnx")
    name, grid = next(iter(grids.items()))
    model = load_model(tmp_path / "f.onnx")
    conv = next(layer.weight for layer in layers(model) if layer.is_conv)

    def refused(bad: dict[str, BlockGrid], match: str, **keywords: object) -> None:
        with pytest.raises(QuantizationError, match=match):
            quantize_weight_only(tmp_path / "f.onnx", tmp_path / "q.onnx", weights=bad, **keywords)

    refused({name: BlockGrid(grid.integers * 2, grid.scale, 16)}, "leave")
    refused({name: BlockGrid(grid.integers.astype(np.int16), grid.scale, 16)}, "int16")
    refused({name: BlockGrid(grid.integers, grid.scale, 32)}, "expected float32")
    refused({name: BlockGrid(grid.integers, grid.scale, 24)}, "powers of two")
    refused({name: BlockGrid(grid.integers[:3], grid.scale[:3], 16)}, "the graph")
    refused({name: BlockGrid(grid.integers, grid.scale, 16, bits=2)}, r"leave \[-2, 1\]")
    refused({name: BlockGrid(grid.integers, grid.scale, 16, bits=3)}, "takes 2, 4 and 8")
    refused({conv: grid}, "convolution")
    refused({name: grid}, "not among", exclude=["elsewhere"])
