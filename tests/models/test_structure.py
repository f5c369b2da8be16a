from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from models.delta import find_head
from models.folding import fold_batchnorm
from models.generalists import load_generalist
from models.structure import prunable_layers, segments
from tests.models.conftest import FAMILIES, image_bundle, pixels, tokens

IMAGE = {
    "resnet18": (r"layer\d\.\d", 8, ["conv1"], []),
    "convnext_atto": (
        r"stages\.\d\.blocks\.\d",
        12,
        ["stem.0", *(f"stages.{i}.downsample.1" for i in (1, 2, 3))],
        [],
    ),
    "deit_tiny_patch16_224": (r"blocks\.\d+", 12, ["patch_embed.proj"], []),
    "mobilenetv2_100": (r"blocks\.\d\.\d", 17, ["conv_stem"], ["conv_head"]),
}


def every_layer_once(model: nn.Module, example: tuple[torch.Tensor, ...]) -> list[str]:
    """Check that the segments partition the body's layers in order; return their names."""
    found = segments(model, example)
    names = [segment.name for segment in found]
    assert len(set(names)) == len(names)
    layers = prunable_layers(model, example)
    head = find_head(model)
    expected = {
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and (head is None or name != head[0])
    }
    assert set(layers) == expected
    holders = [[name for name in names if f"{layer}.".startswith(f"{name}.")] for layer in layers]
    assert all(len(holder) == 1 for holder in holders)
    order = list(dict.fromkeys(holder[0] for holder in holders))
    assert order == names
    assert all(segment.module is model.get_submodule(segment.name) for segment in found)
    return names


@pytest.mark.parametrize("architecture", IMAGE)
@pytest.mark.parametrize("folded", [False, True])
def test_image_families(architecture, folded):
    pattern, blocks, first, last = IMAGE[architecture]
    size = 64
    extra = {"img_size": 64} if architecture.startswith("deit") else {}
    bundle = image_bundle(architecture, **extra)
    if folded:
        bundle = fold_batchnorm(bundle, pixels(size=size))
    names = every_layer_once(bundle.model, pixels(size=size))
    found = [name for name in names if re.fullmatch(pattern, name)]
    assert len(found) == blocks
    assert sorted(set(names) - set(found)) == sorted(first + last)
    assert names[0] == first[0] and (not last or names[-1] == last[0])
    assert next(iter(prunable_layers(bundle.model, pixels(size=size)))) == first[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("labels", [None, ("a", "b")])
def test_text_families(text_folder, family, labels):
    model = load_generalist(f"hf:{text_folder(family, labels)}").model
    names = every_layer_once(model, tokens())
    stem = "encoder.transformer.layer" if family == "distilbert" else "encoder.encoder.layer"
    blocks = 3 if family == "minilm" else 2
    assert names == [f"{stem}.{i}" for i in range(blocks)] + (["neck.0"] if labels else [])


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.unused = nn.Linear(4, 4)
        self.first = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.top = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))

    def get_classifier(self) -> nn.Module:
        return self.top[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.top(self.last(self.first(x)))


def test_unknown_family_falls_back_to_children_in_execution_order():
    model = Unknown()
    assert [segment.name for segment in segments(model, pixels())] == ["first", "last", "top.0"]
    assert list(prunable_layers(model, pixels())) == ["first.0", "last.0", "last.2", "top.0"]


def test_modes_and_hooks_are_left_as_they_were():
    model = Unknown().train()
    model.last.eval()
    segments(model, pixels())
    assert model.training and model.top.training and not model.last.training
    assert not any(module._forward_pre_hooks for module in model.modules())
