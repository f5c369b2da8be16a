from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from google.protobuf.message import EncodeError
from torch import nn

from exports.graph import GraphError, export_onnx, match_layers
from exports.grids import QuantizationError
from exports.half import HalfError
from exports.latency_cache import LatencyError
from exports.onnxfile import array, initializers, layers, load_model, save_model
from exports.runtime import SessionError, run_logits, session
from tasks.errors import bad_input

from .conftest import (
    CLASSES,
    FAMILIES,
    IMAGE_FAMILIES,
    TEXT_FAMILIES,
    Exported,
    images,
    texts,
    torch_logits,
)


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_image_logits_at_other_batch_sizes(exported, family: str) -> None:
    item: Exported = exported(family)
    onnx.checker.check_model(str(item.fp32), full_check=True)
    open_session = session(item.fp32)
    for rows in (1, 2, 5):
        feed = images(rows, seed=rows)
        got = run_logits(open_session, feed)
        assert got.shape == (rows, CLASSES)
        expected = torch_logits(item.model, feed)
        np.testing.assert_allclose(got, expected, atol=1e-4 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_text_logits_at_other_batch_sizes_and_lengths(exported, family: str) -> None:
    item: Exported = exported(family)
    onnx.checker.check_model(str(item.fp32), full_check=True)
    open_session = session(item.fp32)
    for rows, tokens, padded in ((1, 1, False), (1, 9, False), (3, 3, False), (4, 20, True)):
        feed = texts(rows, tokens, seed=tokens, padded=padded)
        got = run_logits(open_session, feed)
        np.testing.assert_allclose(got, torch_logits(item.model, feed), atol=1e-4)


def test_the_file_is_clean(exported) -> None:
    model = load_model(exported("bert").fp32)
    assert not model.graph.value_info  # stale shapes break quantization and slow the runtime
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert [value.name for value in model.graph.input] == ["input_ids", "attention_mask"]
    dims = [dim.dim_param for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["batch", "sequence"]
    assert str(exported("bert").fp32.parent).encode() not in exported("bert").fp32.read_bytes()


def test_export_leaves_the_model_as_it_was(tmp_path) -> None:
    model = FAMILIES["deit"]().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_onnx(model, (torch.zeros(1, 3, 32, 32),), tmp_path / "m.onnx", input_names=["x"])
    assert model.training and model.blocks[0].attn.fused_attn
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Refuses(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("not today")


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, 3) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("kind", "cause"), [(Refuses, "RuntimeError: not today"), (Branches, "data-dependent")]
)
def test_an_untraceable_model_is_one_line_with_the_cause(
    tmp_path, capfd, kind: type[nn.Module], cause: str
) -> None:
    with pytest.raises(GraphError, match="could not be traced") as caught:
        export_onnx(kind(), (torch.zeros(1, 3),), tmp_path / "m.onnx", input_names=["x"])
    assert cause in str(caught.value)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # neither a log line nor the graph so far
    assert not list(tmp_path.iterdir())


def test_others_may_write_while_a_model_is_traced(tmp_path, capfd) -> None:
    def told() -> None:
        sys.stderr.write("half done")

    class Told(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            other = threading.Thread(target=told)
            other.start()
            other.join()
            sys.stderr.write("chatter")
            raise RuntimeError("not today")

    with pytest.raises(GraphError):
        export_onnx(Told(), (torch.zeros(1, 3),), tmp_path / "m.onnx", input_names=["x"])
    written = capfd.readouterr().err
    assert "half done" in written and not written.replace("half done", "")


def test_a_model_that_no_file_holds_is_refused_before_it_is_traced(tmp_path) -> None:
    model = nn.Linear(30_000, 20_000, bias=False, device="meta")  # as bfloat16 is written: float32
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(GraphError, match=r"2\.40 GB.*2 GB") as caught:
            export_onnx(
                model.to(dtype), (torch.zeros(1, 30_000),), tmp_path / "m.onnx", input_names=["x"]
            )
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def refuses_to_encode(model: onnx.ModelProto, path: str) -> None:
    Path(path).write_bytes(b"half a file")
    raise EncodeError("Failed to serialize proto")


def writes_nonsense(model: onnx.ModelProto, path: str) -> None:
    Path(path).write_bytes(onnx.ModelProto().SerializeToString() + b"\x08\x0a")


@pytest.mark.parametrize("save", [refuses_to_encode, writes_nonsense])
def test_a_file_that_cannot_be_written_leaves_nothing(
    exported, tmp_path, monkeypatch: pytest.MonkeyPatch, save: Callable[..., None]
) -> None:
    model = load_model(exported("bert").fp32)
    monkeypatch.setattr(onnx, "save", save)
    with pytest.raises(GraphError, match=r"m\.onnx: .*cannot be written") as caught:
        save_model(model, tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_input_names_must_fit(tmp_path) -> None:
    with pytest.raises(GraphError, match="2 names for 1 inputs"):
        export_onnx(
            nn.Linear(2, 2), (torch.zeros(1, 2),), tmp_path / "m.onnx", input_names=["a", "b"]
        )


@pytest.mark.parametrize("family", ["convnext", "deit", "bert", "distilbert"])
def test_match_layers_finds_every_weight_by_its_numbers(exported, family: str) -> None:
    item: Exported = exported(family)
    weights = {
        name: module.weight.detach().numpy()
        for name, module in item.model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    found = match_layers(item.fp32, weights)
    assert set(found) == set(weights)
    assert len(set(found.values())) == len(weights)
    model = load_model(item.fp32)
    stored = initializers(model)
    axes = {layer.weight: layer.rows_axis for layer in layers(model)}
    for name, initializer in found.items():
        values = array(stored[initializer])
        values = values.T if axes[initializer] == 1 else values
        assert np.array_equal(values, weights[name])


def test_match_layers_finds_embedding_tables(exported) -> None:
    item: Exported = exported("bert")
    table = item.model.encoder.embeddings.word_embeddings.weight.detach().numpy()
    name = match_layers(item.fp32, {"words": table})["words"]
    assert np.array_equal(array(initializers(load_model(item.fp32))[name]), table)


def test_layers_of_equal_numbers_are_both_matched(tmp_path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[2].weight.copy_(model[0].weight)
    path = tmp_path / "m.onnx"
    export_onnx(model, (torch.zeros(1, 4),), path, input_names=["x"])
    found = match_layers(path, {str(i): model[i].weight.detach().numpy() for i in (0, 2, 4)})
    used = {layer.weight for layer in layers(load_model(path))}
    assert set(found.values()) == used


def test_a_weight_that_is_not_there_is_named(exported) -> None:
    with pytest.raises(GraphError, match="layer 'missing'"):
        match_layers(exported("bert").fp32, {"missing": np.ones((32, 32), np.float32)})


class OnAConstant(nn.Module):
    """A position table made by a layer, as SwinV2's: the tracer keeps the table alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.folded, self.head = nn.Linear(4, 4), nn.Linear(3, 4), nn.Linear(4, 2)
        self.register_buffer("places", torch.rand(1, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(x)) + self.folded(self.places))


class ComputesItsWeight(nn.Module):
    """A standardised weight, as NFNet's."""

    def __init__(self) -> None:
        super().__init__()
        self.folded, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.folded.weight
        weight = (weight - weight.mean(1, keepdim=True)) / weight.std(1, keepdim=True)
        return self.head(nn.functional.linear(x, weight))


@pytest.mark.parametrize("kind", [OnAConstant, ComputesItsWeight])
def test_a_folded_layer_is_named_with_its_cause(tmp_path, kind: type[nn.Module]) -> None:
    model, path = kind(), tmp_path / "m.onnx"
    export_onnx(model, (torch.zeros(1, 4),), path, input_names=["x"])
    weights = {"folded": model.folded.weight.detach().numpy()}
    with pytest.raises(GraphError, match=r"'folded'.*on the batch.*computes its weight") as caught:
        match_layers(path, weights)
    assert "\n" not in str(caught.value)


def test_what_a_users_model_sets_off_is_the_users_to_mend() -> None:
    kinds = (GraphError, QuantizationError, HalfError, SessionError, LatencyError)
    assert [kind.__name__ for kind in kinds if not issubclass(kind, bad_input())] == []


def test_the_head_is_the_last_weighted_layer(exported) -> None:
    for family in ("resnet", "bert"):
        found = layers(load_model(exported(family).fp32))
        heads = [layer for layer in found if layer.is_head]
        assert len(heads) == 1 and heads[0] is found[-1]
