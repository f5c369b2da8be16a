from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from exports.departure import FLOAT, first_departure
from exports.graph import export_onnx
from exports.onnxfile import initializers, layers, load_model
from models.spying import torch_tensors


class Small(nn.Module):
    """Two branches, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, None, :]
        y = self.norm(torch.relu(self.first(x)) * 2 + self.second(x))
        return self.head(y).squeeze(1)


@pytest.fixture
def small() -> Small:
    torch.manual_seed(0)
    return Small().eval()


def test_every_step_is_there_in_order(small: Small) -> None:
    x = torch.randn(4, 8)
    made = torch_tensors(small, (x,))
    with torch.no_grad():
        first = small.first(x)
        product = x @ small.first.weight.T
    values = [v.reshape(4, -1) for v in made.values() if v.size == first.numel()]

    def position(wanted: torch.Tensor) -> int:
        return next(i for i, v in enumerate(values) if np.allclose(v, wanted.numpy(), atol=1e-6))

    assert position(product) < position(first) < position(torch.relu(first))
    assert position(torch.relu(first)) < position(small.second(x).detach())
    assert np.allclose(list(made.values())[-1], small(x).detach().numpy())
    assert any(" first " in key for key in made) and any(" norm " in key for key in made)
    assert not any(np.array_equal(v, small.first.weight.detach().numpy()) for v in made.values())
    assert not small.first._forward_hooks  # left as it was


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("what", ["transposed", "row"])
def test_a_damaged_layer_is_the_first_that_departs(
    small: Small, tmp_path: Path, index: int, what: str
) -> None:
    path, x = tmp_path / "small.onnx", torch.randn(4, 8)
    export_onnx(small, (x,), path, input_names=["x"])
    feed, reference = {"x": x.numpy()}, torch_tensors(small, (x,))
    assert first_departure(reference, path, feed, tolerance=FLOAT) is None
    model = load_model(path)
    layer = layers(model)[index]
    tensor = initializers(model)[layer.weight]
    weight = numpy_helper.to_array(tensor).copy()
    if what == "transposed" and weight.shape[0] == weight.shape[1]:
        weight = np.ascontiguousarray(weight.T)
    else:
        weight[0] *= 1.5
    tensor.CopyFrom(numpy_helper.from_array(weight, layer.weight))
    onnx.save(model, str(path))
    found = first_departure(reference, path, feed, tolerance=FLOAT)
    assert found is not None
    assert found["tensor"] == layer.node.output[0]
    assert found["error"] > FLOAT.floats > found["error_before"]
