"""8-bit grids: a layer's weight as integers and scales, an activation's scale and zero point."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from exports.onnxfile import GraphError

Activation = Literal["uint8", "int8"]
_LEVELS = 255
_SMALLEST_STEP = 2.0**-60


class QuantizationError(GraphError):
    """A grid that does not fit the graph; the message is one line."""


@dataclass(frozen=True)
class WeightGrid:
    """A layer's weight as integers and one scale an output channel (symmetric, no zero point).

    Attributes:
        integers: int8, the shape of the torch weight: (out, in) or (out, in/g, kh, kw).
        scale: float32 (out,), positive; may be zero where a channel's integers are all zero.
    """

    integers: np.ndarray
    scale: np.ndarray

    def values(self) -> np.ndarray:
        """Return the weight the grid stands for: integers times scale, float32."""
        rows = self.scale.astype(np.float32).reshape(-1, *[1] * (self.integers.ndim - 1))
        return self.integers.astype(np.float32) * rows


def activation_grid(
    low: float, high: float, activation: Activation
) -> tuple[np.ndarray, np.ndarray]:
    """Return (scale float32, zero point) of the 8-bit grid over [low, high] and zero.

    uint8 is asymmetric. int8 is symmetric with zero point 0, except over a range that is never
    negative, where the zero point is -128: only then can the runtime drop the Relu before it.
    """
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise QuantizationError(f"activation range ({low}, {high}) is not finite")
    if activation == "uint8":
        step = _step(high - low, _LEVELS)
        return step, np.array(np.clip(round(-low / float(step)), 0, 255), np.uint8)
    if activation != "int8":
        raise QuantizationError(f"activation: {activation!r} is neither 'uint8' nor 'int8'")
    if low == 0:
        return _step(high, _LEVELS), np.array(-128, np.int8)
    return _step(max(-low, high), 127), np.array(0, np.int8)


def _step(span: float, levels: int) -> np.ndarray:
    """Return the scale of a grid, a scalar float32; one for a tensor that was always zero."""
    return np.array(max(span / levels, _SMALLEST_STEP) if span > 0 else 1.0, np.float32)
