"""What each kind pays: worked out by hand on a model of two blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from exports.latency import Timings
from tasks.ledger import ledger, predicted_ms, with_fewer_rows
from tasks.recipes import parse_recipe
from tests.tasks.test_config import SMALLEST


def level(size: list[int], ms: float) -> dict[str, Any]:
    return {"size": size, "key": str(size), "ms": {"float32": ms, "int8": ms / 4}}


def branch(name: str, kind: str, levels: list[dict[str, Any]]) -> dict[str, Any]:
    return {"name": name, "units": [{"name": name, "kind": kind, "groups": 0}], "levels": levels}


HEADS = [level([6], 3.0), level([3], 2.0), level([0], 0.0)]
NEURONS = [level([64], 2.0), level([16], 0.5), level([0], 0.0)]
PROFILE = {
    "dense_ms": {"float32": 12.0, "int8": 4.5},
    "branches": [
        branch("a.attn", "heads", HEADS),
        branch("a.mlp", "neurons", NEURONS),
        branch("b.attn", "heads", HEADS),
        branch("b.mlp", "neurons", NEURONS),
    ],
}
STRUCTURE = [
    {"branch": "a.attn", "full": [6], "size": [3]},
    {"branch": "a.mlp", "full": [64], "size": [16]},
    {"branch": "b.attn", "full": [6], "size": [0]},
    {"branch": "b.mlp", "full": [64], "size": [64]},
]


def counts(prunable: int, nonzero: int, size: int) -> dict[str, int]:
    return {"prunable": prunable, "prunable_nonzero": nonzero, "bytes": size}


def test_each_kind_is_told_as_if_it_alone_had_been_taken() -> None:
    recipe = parse_recipe(
        SMALLEST | {"target": {"speedup": 5}, "prune": {"sparsity": 0.5}, "verify": {"repeats": 20}}
    )
    times = {"teacher": 12.0, "teacher-int8": 4.0, "shrunk": 6.5, "pruned": 6.5}
    times |= {"specialist": 2.0, "vocabulary": 12.0}
    random = np.random.default_rng(0)
    rounds = {name: ms + random.normal(0, 0.01, 20) for name, ms in times.items()}
    measured = {
        "teacher": counts(1000, 1000, 4000),
        "teacher-int8": counts(1000, 1000, 1000),
        "shrunk": counts(500, 500, 2000),
        "pruned": counts(500, 250, 1800),
        "specialist": counts(500, 250, 500),
        "vocabulary": {"bytes": 3200},
    }
    rows = {
        row["kind"]: row
        for row in ledger(
            recipe,
            Timings(rounds),
            measured,
            structure=STRUCTURE,
            profile=PROFILE,
            vocabulary={"full": 100, "kept": 25},
        )
    }
    assert list(rows) == [
        "heads", "neurons", "blocks", "structure", "vocabulary",
        "unstructured 50%, bytes only", "int8", "together",
    ]  # fmt: skip
    nominal = {kind: row["nominal"] for kind, row in rows.items()}
    # a removed branch counts under blocks, not under heads
    assert nominal["heads"] == pytest.approx(6 / 3)
    assert nominal["neurons"] == pytest.approx(128 / 80)
    assert nominal["blocks"] == pytest.approx(4 / 3)
    assert nominal["structure"] == 2 and nominal["vocabulary"] == 4
    assert nominal["together"] == pytest.approx(4 * 4)
    ratio = {kind: row["measured_ratio"] for kind, row in rows.items()}
    assert ratio["heads"] == pytest.approx(12 / 11)
    assert ratio["neurons"] == pytest.approx(12 / 10.5)
    assert ratio["blocks"] == pytest.approx(12 / 9)
    assert ratio["together"] == pytest.approx(6, rel=0.01)
    pays = {kind for kind, row in rows.items() if row["pays"]}
    assert pays == {"heads", "neurons", "blocks", "structure", "int8", "together"}
    assert (rows["heads"]["kept"], rows["heads"]["full"]) == (3, 6)
    # between `shrunk` and `pruned` the vocabulary went as well, so no bytes are told there
    assert rows["unstructured 50%, bytes only"]["bytes_ratio"] is None
    assert rows["vocabulary"]["bytes_ratio"] == 4000 / 3200


def test_an_untouched_structure_has_no_rows() -> None:
    recipe = parse_recipe(SMALLEST | {"target": {"speedup": 2}})
    rounds = {name: np.ones(5) for name in ("teacher", "teacher-int8", "pruned", "specialist")}
    whole = {name: counts(10, 10, 10) for name in rounds}
    untouched = [{**entry, "size": entry["full"]} for entry in STRUCTURE]
    rows = ledger(recipe, Timings(rounds), whole, structure=untouched, profile=PROFILE)
    assert [row["kind"] for row in rows] == ["int8", "together"]


def test_predictions_follow_the_table() -> None:
    found = predicted_ms(STRUCTURE, PROFILE)
    assert found["float32"] == pytest.approx(12 - 1 - 1.5 - 3)
    assert found["int8"] == pytest.approx(4.5 - 5.5 / 4)


def test_a_cut_table_answers_as_the_whole_one(tmp_path: Path) -> None:
    table = np.arange(40, dtype=np.float32).reshape(10, 4)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["out"])],
        "lookup",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(table, "table")],
    )
    whole, cut = tmp_path / "whole.onnx", tmp_path / "cut.onnx"
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), str(whole))
    assert not with_fewer_rows(whole, cut, full=11, kept=3)
    assert with_fewer_rows(whole, cut, full=10, kept=3)
    ids = {"ids": np.array([2, 0])}
    (answer,) = ort.InferenceSession(str(cut)).run(None, ids)
    np.testing.assert_array_equal(answer, table[[2, 0]])
    with pytest.raises(Exception, match="indices element out of data bounds"):
        ort.InferenceSession(str(cut)).run(None, {"ids": np.array([3])})
