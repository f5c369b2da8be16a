"""Outliers of activations moved into the weights that read them, at no cost at run time.

A norm ends with a scale and a shift a channel, y = gamma x + beta. Whatever another scale s and
shift t a channel make of y can be written into gamma and beta, and taken back by the layers that
read y:

    gamma' = gamma / s    beta' = (beta - t) / s    W' = W diag(s)    b' = b + W t

The model's answers stay what they were, up to rounding; what changes is how large the numbers
between norm and layer are, and so what it costs to bring them onto one 8-bit grid. Which s and t
are wanted is said by the methods of `compression.smoothing`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compression.errors import CompressionError
from compression.sequential import Batch


@dataclass(frozen=True)
class Rescaling:
    """A norm's output y becomes (y - shift) / scale; both (C,), scale above 0."""

    scale: Tensor
    shift: Tensor


class FeedLike(Protocol):
    """A norm and all layers that read it, by module name; nothing else reads it."""

    @property
    def norm(self) -> str: ...
    @property
    def layers(self) -> tuple[str, ...]: ...


Rescale = Callable[[Tensor, Tensor, Sequence[Tensor]], Rescaling | None]


@torch.no_grad()
def smooth(
    model: nn.Module,
    feeds: Sequence[FeedLike],
    calibration: Callable[[], Iterable[Batch]],
    rescale: Rescale,
) -> list[str]:
    """Fold the scales that ``rescale`` wants into a model, in place; zeros stay exact zeros.

    Args:
        feeds: norms with weight and bias, and their Linear or unpadded Conv2d layers; found in
            the model as it is.
        calibration: the batches whose activations count.

    Returns:
        the names of the norms that were rescaled.

    Raises:
        CompressionError: a scale is not a positive number (an activation was not finite).
    """
    ranges = _ranges(model, [feed.layers[0] for feed in feeds], calibration)
    done = []
    for feed in feeds:
        norm = model.get_submodule(feed.norm)
        layers = [model.get_submodule(name) for name in feed.layers]
        low, high = ranges[feed.layers[0]]
        found = rescale(low, high, [_matrix(layer.weight) for layer in layers])  # type: ignore
        if found is None:
            continue
        scale, shift = found.scale.double(), found.shift.double()
        if not bool((torch.isfinite(scale) & (scale > 0) & torch.isfinite(shift)).all()):
            raise CompressionError(
                f"norm {feed.norm!r}: its activations give no finite scale; set quantize.smooth to "
                "none"
            )
        if any(layer.bias is None for layer in layers):
            shift = torch.zeros_like(shift)  # nothing there to take it back
        _fold(norm, layers, scale, shift)
        done.append(feed.norm)
    return done


def _matrix(weight: Tensor) -> Tensor:
    """A weight's rows over its input channels: (R, C), a kernel's places counted as rows."""
    return weight.detach().flatten(2).movedim(1, -1).flatten(0, 1) if weight.dim() > 2 else weight


def _ranges(
    model: nn.Module, names: Sequence[str], calibration: Callable[[], Iterable[Batch]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Least and largest value of every input channel of the named layers."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []
    for name in names:
        layer = model.get_submodule(name)

        def look(layer: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            channels = args[0].movedim(1, -1) if isinstance(layer, nn.Conv2d) else args[0]
            low, high = torch.aminmax(channels.flatten(0, -2), dim=0)
            if name in found:
                before = found[name]
                low, high = torch.minimum(low, before[0]), torch.maximum(high, before[1])
            found[name] = (low, high)

        handles.append(layer.register_forward_pre_hook(look))
    try:
        for batch in calibration():
            model(*batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _fold(norm: nn.Module, layers: Sequence[nn.Module], scale: Tensor, shift: Tensor) -> None:
    """Write scale and shift (C,), float64, into a norm and take them back in its layers."""
    for parameter, value in ((norm.weight, 0.0), (norm.bias, shift)):
        assert isinstance(parameter, Tensor)
        parameter.copy_((parameter.double() - value) / scale)
    for layer in layers:
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)
        if isinstance(bias, Tensor):
            bias.copy_(bias.double() + (_matrix_sum(weight.double()) @ shift))
        weight.copy_(weight.double() * scale.reshape(1, -1, *[1] * (weight.dim() - 2)))


def _matrix_sum(weight: Tensor) -> Tensor:
    """(R, C): a kernel's places added up, as an input that is the same everywhere meets them."""
    return weight.flatten(2).sum(dim=2) if weight.dim() > 2 else weight
