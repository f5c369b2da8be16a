"""Layers with a low-rank path beside their weight: y = W x + b + B (A x).

`down` is A and `up` is B. A layer keeps its class's behaviour, its name and the names of its weight
and bias, so that whatever treats Linear and Conv2d layers treats these; the two factors are layers
of their own, found by `models.structure` where they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.errors import GeneralistError

__all__ = [
    "LowRankConv2d",
    "LowRankLinear",
    "add_low_rank",
    "factors_cost",
    "is_factor",
    "is_low_rank",
]


class LowRankLinear(nn.Linear):
    """A Linear layer with factors ``down`` (rank, in) and ``up`` (out, rank), zero at first."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        with torch.random.fork_rng(devices=[]):  # random weights that are overwritten cost no draw
            super().__init__(layer.in_features, layer.out_features, layer.bias is not None)
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        _take_over(self, layer)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.up(self.down(x))


class LowRankConv2d(nn.Conv2d):
    """A convolution with factors: ``down`` of its own shape with few rows, ``up`` pointwise."""

    def __init__(self, layer: nn.Conv2d, rank: int) -> None:
        inputs, outputs, bias = layer.in_channels, layer.out_channels, layer.bias is not None
        how = layer.kernel_size, layer.stride, layer.padding, layer.dilation
        with torch.random.fork_rng(devices=[]):
            super().__init__(inputs, outputs, *how, bias=bias)  # type: ignore[arg-type]
            self.down = nn.Conv2d(inputs, rank, *how, bias=False)  # type: ignore[arg-type]
            self.up = nn.Conv2d(rank, outputs, 1, bias=False)
        _take_over(self, layer)

    # not `forward`: a convolution that has one of its own may pad in a way of its own
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight, bias) + self.up(self.down(x))


_LowRank = LowRankLinear | LowRankConv2d


@torch.no_grad()
def _take_over(new: _LowRank, old: nn.Linear | nn.Conv2d) -> None:
    """The old layer's parameters, device and mode; factors of zeros."""
    for factor in (new.down, new.up):
        factor.to(old.weight).weight.zero_()
    new.weight = old.weight
    new.bias = old.bias
    new.train(old.training)


def factors_cost(layer: nn.Module, rank: int) -> int:
    """Weights that factors of this rank would have; 0 where a layer can have none.

    None has a layer that is not plain Linear or ungrouped Conv2d, or whose factors would have as
    many weights as it has.
    """
    if type(layer) is nn.Linear:
        rows, columns = layer.weight.shape
    elif type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros":
        rows, columns = layer.out_channels, layer.weight[0].numel()
    else:
        return 0
    cost = rank * (rows + columns)
    return cost if cost < rows * columns else 0


def is_low_rank(layer: nn.Module) -> bool:
    """Whether a layer carries factors."""
    return isinstance(layer, _LowRank)


def is_factor(model: nn.Module, name: str) -> bool:
    """Whether the module of that name is a factor of a low-rank layer."""
    above, _, own = name.rpartition(".")
    return own in ("up", "down") and is_low_rank(model.get_submodule(above))


def add_low_rank(model: nn.Module, layers: Mapping[str, int]) -> None:
    """Give the named layers factors of the given ranks, zero, so that nothing changes yet.

    Raises:
        GeneralistError: a layer is there that can have none of that rank.
    """
    for name, rank in layers.items():
        layer = model.get_submodule(name)
        if not isinstance(layer, nn.Linear | nn.Conv2d) or not factors_cost(layer, rank):
            raise GeneralistError(
                f"layer {name!r}: {type(layer).__name__} takes no low-rank factors of rank {rank}"
            )
        made = LowRankLinear if isinstance(layer, nn.Linear) else LowRankConv2d
        model.set_submodule(name, made(layer, rank))  # type: ignore[arg-type]
