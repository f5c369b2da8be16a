"""Layers with a low-rank path: nothing changes when they are made, all is kept and served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from exports.census import census
from exports.graph import export_onnx, match_layers
from models.checkpoint import Bundle, load_bundle, save_bundle
from models.errors import GeneralistError
from models.folding import fold_batchnorm
from models.low_rank import LowRankLinear, add_low_rank, factors_cost, is_factor
from models.structure import prunable_layers, segments
from tests.models.conftest import image_bundle, pixels

SLOW = ("test_vit", "test_convnext")  # to trace


def with_factors(architecture: str, rank: int = 2) -> tuple[Bundle, dict[str, int]]:
    bundle = fold_batchnorm(image_bundle(architecture), pixels())
    layers = prunable_layers(bundle.model, pixels())
    ranks = {name: rank for name, layer in layers.items() if factors_cost(layer, rank)}
    add_low_rank(bundle.model, ranks)
    bundle.delta.append({"op": "low_rank", "layers": ranks})
    return bundle, ranks


@torch.no_grad()
def fill(bundle: Bundle) -> None:
    """Factors that are not zero."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in bundle.model.named_parameters():
        if is_factor(bundle.model, name.removesuffix(".weight")):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("architecture", ["test_vit", "test_resnet", "test_convnext"])
def test_factors_of_zeros_change_nothing_and_are_no_layers_to_prune(architecture: str) -> None:
    plain = fold_batchnorm(image_bundle(architecture), pixels())
    bundle, ranks = with_factors(architecture)
    assert ranks
    assert torch.equal(bundle.model(*pixels()), plain.model(*pixels()))
    assert list(prunable_layers(bundle.model, pixels())) == list(
        prunable_layers(plain.model, pixels())
    )
    every = set(prunable_layers(bundle.model, pixels(), factors=True))
    found = {f"{name}.{part}" for name in ranks for part in ("down", "up")}
    assert every - set(prunable_layers(plain.model, pixels())) == found
    names = [[part.name for part in segments(each.model, pixels())] for each in (bundle, plain)]
    assert names[0] == names[1]


@pytest.mark.parametrize("architecture", ["test_vit", "test_resnet"])
def test_a_checkpoint_keeps_them(architecture: str, tmp_path: Path) -> None:
    bundle, ranks = with_factors(architecture)
    fill(bundle)
    save_bundle(bundle, tmp_path)
    again = load_bundle(tmp_path)
    assert again.delta == bundle.delta
    assert torch.equal(again.model(*pixels()), bundle.model(*pixels()))
    for name in ranks:
        assert type(again.model.get_submodule(name)) is type(bundle.model.get_submodule(name))


@pytest.mark.parametrize(
    "architecture",
    ["test_resnet", *(pytest.param(x, marks=pytest.mark.slow) for x in SLOW)],
)
def test_what_is_exported_computes_the_same_and_counts_every_weight(
    architecture: str, tmp_path: Path
) -> None:
    bundle, ranks = with_factors(architecture)
    fill(bundle)
    path = tmp_path / "model.onnx"
    export_onnx(bundle.model, pixels(), path, input_names=["pixel_values"])
    layers = prunable_layers(bundle.model, pixels(), factors=True)
    weights = {name: layer.weight.detach().numpy() for name, layer in layers.items()}  # type: ignore[operator]
    found = match_layers(path, weights)
    assert len(set(found.values())) == len(weights)
    (served,) = onnxruntime.InferenceSession(str(path)).run(
        None, {"pixel_values": pixels()[0].numpy()}
    )
    with torch.no_grad():
        expected = bundle.model(*pixels()).numpy()
    np.testing.assert_allclose(served, expected, rtol=1e-3, atol=1e-4)
    counts = census(path, set(found.values()))
    assert counts["prunable"] == sum(weight.size for weight in weights.values())
    assert counts["prunable_nonzero"] == sum(np.count_nonzero(w) for w in weights.values())
    factors = [weights[f"{name}.{part}"].size for name in ranks for part in ("down", "up")]
    fewer = {name: at for name, at in found.items() if not is_factor(bundle.model, name)}
    assert census(path, set(fewer.values()))["prunable"] == counts["prunable"] - sum(factors)


def test_what_can_have_no_factors_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(8, 8, 3, groups=8), nn.LayerNorm(4))
    assert [factors_cost(layer, 1) for layer in model] == [8, 0, 0]
    assert factors_cost(model[0], 2) == 0  # as many weights as the layer has
    add_low_rank(model, {"0": 1})
    assert isinstance(model[0], LowRankLinear) and factors_cost(model[0], 1) == 0
    with pytest.raises(GeneralistError, match=r"layer '1': Conv2d .* no low-rank factors"):
        add_low_rank(model, {"1": 1})


def test_a_layer_keeps_its_parameters_and_mode() -> None:
    old = nn.Linear(8, 8, bias=False).double().eval()
    state = torch.get_rng_state()
    new = LowRankLinear(old, 2)
    assert new.weight is old.weight and new.bias is None and not new.training
    assert new.up.weight.dtype == torch.float64 and not new.up.training
    assert torch.equal(torch.get_rng_state(), state)
