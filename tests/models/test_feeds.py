"""Which norms can hand a scale on: by family, and what must be left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.feeds import Feed, find_feeds, norms
from tests.models.families import example, family


def test_every_norm_of_a_vision_transformer_but_the_last(text_folder: Callable[..., Path]) -> None:
    model = family("vit", text_folder).model
    assert find_feeds(model, example("vit")) == [
        Feed(f"blocks.{block}.{norm}", (f"blocks.{block}.{layer}",))
        for block in range(2)
        for norm, layer in (("norm1", "attn.qkv"), ("norm2", "mlp.fc1"))
    ]
    assert set(norms(model)) - {feed.norm for feed in find_feeds(model, example("vit"))} == {"norm"}


@pytest.mark.parametrize("name", ["convnext", "convnext-conv"])
def test_convnext(text_folder: Callable[..., Path], name: str) -> None:
    model = family(name, text_folder).model
    feeds = {feed.norm: feed.layers for feed in find_feeds(model, example(name))}
    blocks = [x for x, m in model.named_modules() if type(m).__name__ == "ConvNeXtBlock"]
    for block in blocks:
        assert feeds.pop(f"{block}.norm") == (f"{block}.mlp.fc1",)
    # what is left feeds the downsampling convolutions
    assert len(feeds) == 3
    assert all(norm.endswith("downsample.0") for norm in feeds)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_norms_that_the_residual_reads_are_left_alone(
    text_folder: Callable[..., Path], name: str
) -> None:
    model = family(name, text_folder).model
    assert len(norms(model)) == 5
    assert find_feeds(model, example(name)) == []


class Odd(nn.Module):
    """A norm of each kind that must stay, and one that need not."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("good", "added", "sliced", "twice", "shared", "unread", "padded"):
            setattr(self, name, nn.LayerNorm(4))
            setattr(self, f"{name}_layer", nn.Linear(4, 4))
        self.bare = nn.LayerNorm(4, elementwise_affine=False)
        self.also = nn.Linear(4, 4, bias=False)
        self.shared_layer.weight = self.twice_layer.weight
        self.padded_layer = nn.Conv2d(4, 4, 3, padding=1)
        self.rest = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, 3, 3, 4)
        y = self.rest(self.good(x))
        assert y.shape == x.shape and y.size(0) == len(x)
        x = self.good_layer(y) + self.also(input=y) if False else self.good_layer(y) + self.also(y)
        y = self.added(x)
        x = y + self.added_layer(y)
        x = self.sliced_layer(self.sliced(x)[..., :4])
        x = self.twice_layer(self.twice(self.twice(x)))
        x = F.linear(self.shared(x), self.shared_layer.weight)
        x = x + self.unread(x)
        x = self.padded_layer(self.padded(x).permute(0, 3, 1, 2))
        return x.mean((2, 3))


def test_norms_that_cannot_hand_it_on() -> None:
    torch.manual_seed(0)
    model = Odd().train()
    assert find_feeds(model, (torch.randn(2, 3, 3, 4),)) == [Feed("good", ("good_layer", "also"))]
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
