"""Linear and Conv2d seen as one thing: groups of matrices acting on columns.

Every solver works on W of shape (G, R, C): G groups (1 but for grouped convolutions), R output
rows a group, C input columns a row. A convolution becomes a matrix by unfolding its input, so
the layer problem  min ||W X - W' X||^2  is the same for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.errors import CompressionError

Layer = nn.Linear | nn.Conv2d


def as_layer(name: str, module: nn.Module) -> Layer:
    """Return ``module`` if the solvers can treat it.

    Raises:
        CompressionError: for any other module, or a Conv2d that pads in a way of its own.
    """
    if isinstance(module, nn.Linear):
        return module
    if isinstance(module, nn.Conv2d):
        own = type(module).forward is not nn.Conv2d.forward and not _pads_same(module)
        if own or module.padding_mode != "zeros":
            raise CompressionError(
                f"layer {name!r}: {type(module).__name__} pads its input in a way that cannot be "
                "unfolded; keep it dense (prune.keep_dense)"
            )
        return module
    raise CompressionError(
        f"layer {name!r}: {type(module).__name__} is neither Linear nor Conv2d; keep it dense"
    )


def _pads_same(layer: nn.Conv2d) -> bool:
    """Whether the layer is timm's convolution with TensorFlow's SAME padding."""
    return type(layer).__name__ == "Conv2dSame"


def _same_padding(layer: nn.Conv2d, x: Tensor) -> list[int]:
    """SAME padding of an input (B, channels, H, W), in F.pad's order: the odd pixel goes last."""
    padding: list[int] = []
    for axis in (1, 0):
        size, k = x.shape[2 + axis], layer.kernel_size[axis]
        s, d = layer.stride[axis], layer.dilation[axis]
        total = max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
        padding += [total // 2, total - total // 2]
    return padding


def matrix_of(layer: Layer) -> Tensor:
    """The layer's weight as (G, R, C); a view where the layout allows it."""
    weight = layer.weight.detach()
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def mask_as_weight(layer: Layer, matrix: Tensor) -> Tensor:
    """A (G, R, C) matrix back in the shape of the layer's weight."""
    return matrix.reshape(layer.weight.shape)


@torch.no_grad()
def store(layer: Layer, weight: Tensor, bias: Tensor | None = None) -> None:
    """Write a (G, R, C) weight and, where given, a (G, R) bias back into the layer."""
    layer.weight.copy_(mask_as_weight(layer, weight).to(layer.weight.dtype))
    if bias is not None and layer.bias is not None:
        layer.bias.copy_(bias.reshape(-1).to(layer.bias.dtype))


def columns_of(
    layer: Layer, x: Tensor, pick: Callable[[int], Tensor | None] = lambda _: None
) -> Tensor:
    """Inputs of the layer as the columns its matrix multiplies: (G, N, C).

    N counts samples times positions. For a Linear layer ``x`` is (..., in); for a Conv2d it is
    (B, channels, height, width) and every output position gives one column. ``pick`` is told N
    and may answer with the indices wanted, before anything is copied.
    """
    if isinstance(layer, nn.Linear):
        rows = x.reshape(-1, x.shape[-1])
        wanted = pick(len(rows))
        return (rows if wanted is None else rows[wanted.to(x.device)])[None]
    pointwise = layer.kernel_size == (1, 1)
    if pointwise and (layer.padding in ((0, 0), "valid") or _pads_same(layer)):
        s, t = layer.stride
        windows = x[:, :, ::s, ::t, None, None]
    else:
        padding = layer._reversed_padding_repeated_twice  # F.pad order, 'same' and 'valid' included
        if _pads_same(layer):
            padding = _same_padding(layer, x)
        windows = _windows(layer, F.pad(x, padding))
    b, channels, h, w, kh, kw = windows.shape  # h, w: of the output
    size = channels // layer.groups * kh * kw
    wanted = pick(b * h * w)
    if wanted is None:
        picked = windows.permute(0, 2, 3, 1, 4, 5)
    else:
        wanted = wanted.to(x.device)
        at, place = wanted // (h * w), wanted % (h * w)
        picked = windows[at, :, place // w, place % w]  # (n, channels, kh, kw)
    return picked.reshape(-1, layer.groups, size).transpose(0, 1)


def _windows(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """What each output position sees of a padded input: (B, channels, H', W', kh, kw), a view."""
    for axis in (0, 1):
        reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
        x = x.unfold(2 + axis, reach, layer.stride[axis])
    return x[..., :: layer.dilation[0], :: layer.dilation[1]]
