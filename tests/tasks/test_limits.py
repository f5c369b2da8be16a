"""Limits measured on graphs whose answers are known: which rows, which models, which numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

import tasks.limits as limits_module
from exports.corruptions import corruptions, upright
from exports.limits import limits_text
from tasks.artifacts import Artifact
from tasks.layout import GRAPH
from tasks.limits import measure_limits, stratified
from tasks.measure import logits_of
from tasks.splits import Split, load_split
from tests.conftest import WORDS
from tests.tasks.test_outside import prepared, recipe_of

CLASSES = ["card", "parcel"]


def save_graph(
    folder: Path, inputs: list[Any], nodes: list[Any], constants: dict[str, Any]
) -> None:
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", "K"])
    stored = [numpy_helper.from_array(np.asarray(x), name) for name, x in constants.items()]
    graph = helper.make_graph(nodes, "known", inputs, [logits], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / GRAPH)


def text_folder(folder: Path, gains: tuple[float, float]) -> Path:
    """A graph that counts the words of each class, each class with its gain; unknown words: 0."""
    folder.mkdir()
    words = [word for name in CLASSES for word in WORDS[name]]
    tokenizer = Tokenizer(
        models.WordLevel({word: row for row, word in enumerate(["?", *words])}, unk_token="?")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    settings = {"modality": "text", "max_length": 32, "pad_id": 0, "labels": CLASSES}
    (folder / "preprocess.json").write_text(json.dumps(settings))
    table = np.zeros((len(words) + 1, 2), np.float32)
    for row, word in enumerate(words, 1):
        for column, name in enumerate(CLASSES):
            table[row, column] = gains[column] * (word in WORDS[name])
    ids, mask = (
        helper.make_tensor_value_info(name, TensorProto.INT64, ["N", "T"])
        for name in ("input_ids", "attention_mask")
    )
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["seen"]),
        helper.make_node("ReduceSum", ["seen", "axes"], ["logits"], keepdims=0),
    ]
    save_graph(folder, [ids, mask], nodes, {"table": table, "axes": np.array([1])})
    return folder


def image_folder(folder: Path, gain: float) -> Path:
    """A graph whose logits are the mean red, green and blue, times a gain."""
    folder.mkdir()
    settings = {"modality": "image", "size": [32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
    labels = {"labels": ["red", "green", "blue"]}
    (folder / "preprocess.json").write_text(json.dumps(settings | labels))
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["N", 3, 32, 32])
    nodes = [
        helper.make_node("ReduceMean", ["pixel_values", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "gain"], ["logits"]),
    ]
    constants = {"axes": np.array([2, 3]), "gain": np.float32(gain)}
    save_graph(folder, [pixels], nodes, constants)
    return folder


@pytest.fixture
def text_case(tmp_path: Path, text_task: dict[str, str]) -> tuple[Artifact, dict[str, Path], Split]:
    """A teacher that knows both classes, and a specialist that never says 'parcel'."""
    data = prepared(text_task, CLASSES)
    folders = {
        "teacher": text_folder(tmp_path / "t", (3.0, 3.0)),
        "specialist": text_folder(tmp_path / "s", (3.0, -3.0)),
    }
    return data, folders, load_split(data.folder / "test.parquet")


def test_texts_by_hand(
    text_task: dict[str, str], text_case: tuple[Artifact, dict[str, Path], Split]
) -> None:
    data, folders, test = text_case
    logits = logits_of(folders, test.inputs)
    recipe = recipe_of(text_task, samples=40)
    found = measure_limits(recipe, data, {**folders, "pruned": Path("/none")}, test, logits)
    assert found is not None and found["confidence"] == 0.95
    outside = found["outside"]
    assert outside["source"] == "the other class of test.jsonl"
    assert outside["n"] <= 40 and outside["n_inside"] == len(test)
    # no sentence about refunds holds a word of either class: all logits are 0, p = 1/2
    assert outside["auroc"]["teacher"] == 1 and outside["sure"] == {"teacher": 0, "specialist": 0}
    assert outside["inside_sure"]["teacher"] == 1
    assert found["clean"] == {"teacher": 1.0, "specialist": pytest.approx(0.5, abs=0.03), "n": 40}
    rows = stratified(np.array(test.labels), 40, recipe.task.seed).tolist()
    for told, corruption in zip(found["corruptions"], corruptions("text"), strict=True):
        right = 0
        for row in rows:  # one at a time: no batch, no order to get wrong
            worse = str(corruption(str(test.inputs[row]), seed=recipe.task.seed, row=row))
            counts = [sum(word in WORDS[name] for word in worse.split()) for name in CLASSES]
            right += int(np.argmax(counts)) == test.labels[row]
        assert told["teacher"] == pytest.approx(right / 40)
        assert told["teacher_drop"] == pytest.approx(1 - right / 40)
        assert told["drop"] == pytest.approx(told["teacher"] - told["specialist"])
        assert told["drop_ci"][0] > 0
    assert found["corruptions"][1]["teacher_drop"] > 0
    json.dumps(found, allow_nan=False)
    assert any("measurably more accurate" in line for line in limits_text(found))


def test_images_by_hand(tmp_path: Path, image_task: dict[str, str]) -> None:
    data = prepared(image_task, ["red", "green", "blue"])
    folders = {
        "teacher": image_folder(tmp_path / "t", 8.0),
        "specialist": image_folder(tmp_path / "s", -8.0),
    }
    test = load_split(data.folder / "test.parquet")
    logits = logits_of(folders, test.inputs)
    found = measure_limits(recipe_of(image_task, samples=20), data, folders, test, logits)
    assert found is not None
    assert found["clean"] == {"teacher": 1.0, "specialist": 0.0, "n": 20}
    assert [(row["kind"], row["level"]) for row in found["corruptions"]] == [
        (kind, level) for kind in ("blur", "noise", "jpeg") for level in (1, 2)
    ]
    # neither blur nor noise nor JPEG moves the mean colour that these graphs look at
    assert all((row["teacher"], row["specialist"]) == (1, 0) for row in found["corruptions"])
    assert found["outside"]["n"] == 20 and "photographs" in found["outside"]["source"]


def test_every_row_gets_its_own_corruption_in_every_batch(
    tmp_path: Path, image_task: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = prepared(image_task, ["red", "green", "blue"])
    test = load_split(data.folder / "test.parquet")
    folder = image_folder(tmp_path / "t", 8.0)
    models_by_name = {"teacher": limits_module._opened(folder)}
    rows = np.array([3, 7, 8, 20, 33])
    monkeypatch.setattr(limits_module, "_AT_ONCE", 2)
    made = limits_module._under_corruption(models_by_name, test, rows, "image", seed=5)
    for corruption, logits in made:
        for at, row in enumerate(rows.tolist()):
            raw = test.inputs[row]
            assert isinstance(raw, bytes)
            worse = corruption(upright(raw), seed=5, row=row)
            alone = models_by_name["teacher"].logits([worse])
            assert logits["teacher"][at] == pytest.approx(alone[0], abs=1e-5)


def test_what_is_not_asked_is_not_measured(
    text_task: dict[str, str],
    text_case: tuple[Artifact, dict[str, Path], Split],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, folders, test = text_case
    logits = logits_of(folders, test.inputs)

    def measured(**limits: Any) -> dict[str, Any] | None:
        return measure_limits(recipe_of(text_task, **limits), data, folders, test, logits)

    assert measured(samples=0) is None
    plain = measured(samples=10, corruptions=False)
    assert plain is not None and plain["corruptions"] == [] and plain["outside"]["n"] == 10
    alone = measured(samples=1)
    assert alone is not None and alone["outside"] is None and alone["clean"]["n"] == 1
    nothing: Callable[..., Any] = lambda *_: ("", [])  # noqa: E731
    monkeypatch.setattr(limits_module, "outside_inputs", nothing)
    bare = measured(samples=10)
    assert bare is not None and bare["outside"] is None and len(bare["corruptions"]) == 2
    with pytest.raises(ValueError, match="logits for"):
        measure_limits(recipe_of(text_task), data, folders, test.rows([0, 1]), logits)


def test_the_subset_keeps_every_class_at_its_share() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3], [500, 300, 150, 50]))
    for seed in range(20):
        rows = stratified(labels, 100, seed)
        assert rows.tolist() == sorted(set(rows.tolist())) and len(rows) == 100
        shares = np.bincount(labels[rows], minlength=4)
        assert np.abs(shares - [50, 30, 15, 5]).max() <= 1
        assert np.array_equal(rows, stratified(labels, 100, seed))
    assert not np.array_equal(stratified(labels, 100, 0), stratified(labels, 100, 1))
    assert stratified(labels[:30], 100, 0).tolist() == list(range(30))


def test_every_row_of_a_class_has_the_same_chance() -> None:
    labels = np.repeat([0, 1], [35, 5])
    drawn = np.zeros(40)
    for seed in range(2000):
        drawn[stratified(labels, 12, seed)] += 1
    assert drawn / 2000 == pytest.approx(np.full(40, 12 / 40), abs=0.05)
