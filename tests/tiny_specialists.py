"""Specialists made by hand in milliseconds: what they know, weigh and take is chosen by a test."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.conftest import FILLERS, WORDS

SIDE = 8


def text_specialist(
    folder: Path,
    known: Mapping[str, Iterable[str]] = WORDS,
    *,
    labels: Iterable[str] = tuple(WORDS),
    extra_bytes: int = 0,
    layers: int = 0,
) -> Path:
    """A bag of words: a class scores a point for each of its words in the text.

    Args:
        known: the words that tell each class; with none, every text is of the first class.
        extra_bytes: size of a weight that does nothing.
        layers: products of 384 x 384 matrices that add nothing but time.
    """
    labels = list(labels)
    words = ["[PAD]", "[UNK]", *FILLERS, *(word for group in WORDS.values() for word in group)]
    tokenizer = Tokenizer(
        models.WordLevel({word: row for row, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    table = np.zeros((len(words), len(labels)), np.float32)
    for label, group in known.items():
        for word in group:
            table[words.index(word), labels.index(label)] = 1
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["rows", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["scores"]),
        helper.make_node("ReduceSum", ["scores", "axis"], ["sums"], keepdims=0),
    ]
    weights = {"table": table, "axis": np.array([1])}
    _write(folder, nodes, weights, inputs, "sums", len(labels), extra_bytes, layers)
    settings = {"modality": "text", "labels": labels, "max_length": 32, "pad_id": 0}
    (folder / "preprocess.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    return folder


def image_specialist(folder: Path, labels: Iterable[str] = ("red", "green", "blue")) -> Path:
    """The class of the channel that is brightest."""
    labels = list(labels)
    inputs = [
        helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["rows", 3, SIDE, SIDE])
    ]
    nodes = [helper.make_node("ReduceMean", ["pixel_values", "axes"], ["means"], keepdims=0)]
    _write(folder, nodes, {"axes": np.array([2, 3])}, inputs, "means", len(labels))
    settings = {
        "modality": "image", "labels": labels, "size": [SIDE, SIDE], "resize": SIDE,
        "mean": [0.5] * 3, "std": [0.5] * 3,
    }  # fmt: skip
    (folder / "preprocess.json").write_text(json.dumps(settings))
    return folder


def _write(
    folder: Path,
    nodes: list[onnx.NodeProto],
    weights: Mapping[str, np.ndarray],
    inputs: list[onnx.ValueInfoProto],
    scores: str,
    width: int,
    extra_bytes: int = 0,
    layers: int = 0,
) -> None:
    weights, last = dict(weights), scores
    if layers:
        weights |= {
            "in": np.zeros((width, 384), np.float32),
            "square": np.eye(384, dtype=np.float32),
            "out": np.zeros((384, width), np.float32),
        }
        last = "wide"
        nodes.append(helper.make_node("MatMul", [scores, "in"], [last]))
        for layer in range(layers):
            nodes.append(helper.make_node("MatMul", [last, "square"], [f"wide{layer}"]))
            last = f"wide{layer}"
        nodes.append(helper.make_node("MatMul", [last, "out"], ["nothing"]))
        nodes.append(helper.make_node("Add", [scores, "nothing"], ["logits"]))
    else:
        nodes.append(helper.make_node("Identity", [last], ["logits"]))
    if extra_bytes:
        weights["ballast"] = np.zeros(extra_bytes // 4, np.float32)
    graph = helper.make_graph(
        nodes,
        "specialist",
        inputs,
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", width])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "specialist.onnx")
