"""Scales by their equations; folded, the model answers as before and its ranges are as wanted."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from compression.errors import CompressionError
from compression.smooth import Rescaling, smooth
from compression.smoothing import METHODS

F64 = torch.float64


@dataclass
class Feed:
    norm: str
    layers: tuple[str, ...]


class Net(nn.Module):
    """A norm read by two layers, one without a bias; a norm read by a strided convolution."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(12)
        self.one, self.two = nn.Linear(12, 5), nn.Linear(12, 7, bias=bias)
        self.places = nn.LayerNorm(12)
        self.conv = nn.Conv2d(12, 4, 2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, 6, 6, 12)
        y = self.norm(x)
        z = self.conv(self.places(x).permute(0, 3, 1, 2))
        return torch.cat([self.one(y), self.two(y)], -1).mean((1, 2)).sum(-1) + z.sum((1, 2, 3))


FEEDS = [Feed("norm", ("one", "two")), Feed("places", ("conv",))]


def made(generator, bias: bool = True) -> tuple[Net, torch.Tensor]:
    net = Net(bias).double()
    with torch.no_grad():
        for norm in (net.norm, net.places):
            norm.weight.copy_(torch.logspace(-2, 2, 12, dtype=F64))
            norm.bias.copy_(3 * torch.randn(12, generator=generator, dtype=F64))
        net.one.weight[:, 3] = 0.0
        net.two.weight[:, 3] = 0.0  # a channel that nobody reads
        net.one.weight[2, 5] = 0.0
    net.requires_grad_(False)
    return net, torch.randn(8, 6, 6, 12, generator=generator, dtype=F64)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("bias", [True, False])
def test_the_answers_stay_and_so_do_zeros(generator, name, bias) -> None:
    net, x = made(generator, bias)
    smoothed = copy.deepcopy(net)
    done = smooth(smoothed, FEEDS, lambda: [(x[:5],), (x[5:],)], METHODS.load(name))
    assert done == ([] if name == "none" else ["norm", "places"])
    assert torch.allclose(smoothed(x), net(x), rtol=1e-11)
    assert torch.equal(smoothed.one.weight == 0, net.one.weight == 0)
    changed = not torch.equal(smoothed.norm.weight, net.norm.weight)
    assert changed == (name != "none")


def test_smoothquant_is_equation_4(generator) -> None:
    net, x = made(generator)
    low, high = net.norm(x).flatten(0, 2).aminmax(dim=0)
    weights = [net.one.weight, net.two.weight]
    scale = METHODS.load("smoothquant")(low, high, weights).scale
    for j in range(12):
        reading = max(float(weight[:, j].abs().max()) for weight in weights)
        inputs = float(net.norm(x)[..., j].abs().max())
        assert float(scale[j]) == pytest.approx(
            inputs**0.5 / reading**0.5 if reading else 1.0, rel=1e-9
        )


def test_smoothquant_makes_inputs_and_weights_equally_large(generator) -> None:
    net, x = made(generator)
    smooth(net, FEEDS, lambda: [(x,)], METHODS.load("smoothquant"))
    inputs = net.norm(x).flatten(0, 2).abs().amax(0)
    weights = torch.cat([net.one.weight, net.two.weight]).abs().amax(0)
    read = weights > 0
    assert torch.allclose(inputs[read], weights[read])
    kernel = net.conv.weight.abs().amax((0, 2, 3))
    assert torch.allclose(net.places(x).flatten(0, 2).abs().amax(0), kernel)


def test_repq_gives_every_channel_one_range(generator) -> None:
    net, x = made(generator)
    low, high = net.norm(x).flatten(0, 2).aminmax(dim=0)
    s, z = (high - low) / 255, -255 * low / (high - low)
    smooth(net, FEEDS, lambda: [(x,)], METHODS.load("repq"))
    for norm in (net.norm, net.places):
        found = norm(x).flatten(0, 2).aminmax(dim=0)
        assert torch.allclose(found.min, found.min[:1].expand(12))
        assert torch.allclose(found.max, found.max[:1].expand(12))
    found = net.norm(x).flatten(0, 2).aminmax(dim=0)
    assert float((found.max - found.min)[0]) == pytest.approx(255 * float(s.mean()))
    assert float(-found.min[0] / s.mean()) == pytest.approx(float(z.mean()))


def test_without_a_bias_to_take_it_there_is_no_shift(generator) -> None:
    net, x = made(generator, bias=False)
    before = net.norm(x).flatten(0, 2).aminmax(dim=0)
    smooth(net, FEEDS[:1], lambda: [(x,)], METHODS.load("repq"))
    after = net.norm(x).flatten(0, 2).aminmax(dim=0)
    assert torch.allclose(after.max - after.min, (before.max - before.min).mean().expand(12))
    assert torch.allclose(after.max / after.min, before.max / before.min)


def test_channels_that_say_nothing_keep_their_scale() -> None:
    low, high = torch.tensor([0.0, 2.0, -1.0]), torch.tensor([0.0, 2.0, 3.0])
    quiet = METHODS.load("repq")(low, high, [torch.ones(2, 3)])
    assert quiet.scale.tolist() == [1.0, 1.0, 1.0] and quiet.shift.tolist() == [0.0, 0.0, 0.0]
    assert METHODS.load("repq")(low[:2], high[:2], [torch.ones(2, 2)]) is None
    assert METHODS.load("smoothquant")(low, high, [torch.ones(2, 3)]).scale[0] == 1.0


def test_an_endless_activation_is_an_error_that_names_the_norm(generator) -> None:
    net, x = made(generator)

    def rescale(low, high, weights) -> Rescaling:
        return Rescaling(torch.full_like(low, torch.nan), torch.zeros_like(low))

    with pytest.raises(CompressionError, match=r"norm 'norm'.*quantize.smooth to none"):
        smooth(net, FEEDS, lambda: [(x,)], rescale)
