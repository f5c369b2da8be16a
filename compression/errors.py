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


class UnreachableBudget(CompressionError):
    """A budget below what the smallest choice of everything costs; says what is reachable."""

    def __init__(self, name: str, budget: float, least: float) -> None:
        super().__init__(
            f"the budget {name} = {budget:.4g} cannot be reached: {least:.4g} is the least that "
            "the allowed sizes cost; ask for that much, or allow more kinds of shrinking"
        )
        self.name, self.budget, self.least = name, budget, least
