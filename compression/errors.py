"""What can go wrong in the numerics, each said in one line that names the layer."""

from __future__ import annotations


class CompressionError(ValueError):
    """A request the numerics cannot meet: the message names the layer or value and the remedy."""


class CholeskyError(CompressionError):
    """A Hessian that is not positive definite under the damping it was given."""

    def __init__(self, layer: str, rel_damp: float, samples: int) -> None:
        super().__init__(
            f"layer {layer!r}: Hessian of {samples} samples is not positive definite at "
            f"rel_damp={rel_damp:g}; raise prune.rel_damp or give more calibration samples"
        )
        self.layer, self.rel_damp, self.samples = layer, rel_damp, samples
