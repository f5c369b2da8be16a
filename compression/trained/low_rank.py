"""A low-rank change of every layer, masked, and merged into the weights when it is trained.

MaskLoRA of PERP (Zimmer, Andoni, Spiegel, Pokutta 2023, arXiv 2312.15230, section 3.2): a pruned
layer is trained as W + M * (B A) with W fixed, M its mask and B A of rank r, B zero at first; since
the mask is part of the product, merging keeps every zero, which plain LoRA (Hu et al. 2021, arXiv
2106.09685) does not. Biases and the parameters of norms are trained beside it, as there.

Ours differs: layers that were not pruned, the head among them, are trained so too, their mask all
ones; a convolution's weight is factorised as the matrix (rows, columns) that `compression.layers`
makes of it; the factor alpha / r is 1, and is left to the learning rate. What is averaged over the
steps are the factors, not their product.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compression.layers import Layer
from compression.trainable import Trainable, only
from compression.trained.norms import vectors


class MaskedLowRank(nn.Module):
    """W -> W + M * (B A): what a layer's weight is while its factors are trained.

    B is (rows, r) and zero, A (r, columns) and uniform in +-1/sqrt(columns), as LoRA has them.
    """

    mask: Tensor | None

    def __init__(
        self, weight: Tensor, mask: Tensor | None, rank: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        rank = min(rank, rows, columns)
        bound = 1 / math.sqrt(columns)
        # drawn on the CPU, so that every device starts from the same numbers
        drawn = (2 * torch.rand(rank, columns, generator=generator) - 1) * bound
        self.a = nn.Parameter(drawn.to(weight))
        self.b = nn.Parameter(weight.new_zeros(rows, rank))
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        # in full precision, so that what is merged is what was trained
        with torch.autocast(weight.device.type, enabled=False):
            change = (self.b @ self.a).view_as(weight)
        return weight + (change if self.mask is None else change * self.mask)


def choose(student: nn.Module, kept: Mapping[str, Tensor], *, rank: int, seed: int) -> Trainable:
    """Factors of rank ``rank``, or as many as the matrix has, and every vector."""
    generator = torch.Generator().manual_seed(seed)
    layers: dict[str, Layer] = {
        name: module
        for name, module in student.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    plain = vectors(student)
    changes = {
        name: MaskedLowRank(layer.weight.detach(), kept.get(name), rank, generator)
        for name, layer in layers.items()
    }
    for name, layer in layers.items():
        parametrize.register_parametrization(layer, "weight", changes[name])
    factors = [factor for change in changes.values() for factor in change.parameters()]

    def merge() -> None:
        for layer in layers.values():
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)

    return Trainable(only(student, [*plain, *factors]), merge=merge)
