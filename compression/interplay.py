"""Does quantizing cost more once a model is sparse? The orthogonality threshold.

Harma et al., "Effective Interplay between Sparsity and Quantization" (ICLR 2025): errors of two
compressions are orthogonal when their joint error is at most the sum of their own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Interplay:
    """Accuracies of the four corners, the threshold they imply, and whether it is met."""

    dense: float
    sparse: float
    quantized: float
    both: float
    threshold: float
    orthogonal: bool


def interplay(*, dense: float, sparse: float, quantized: float, both: float) -> Interplay:
    """E_orth = E(dense) + [E(sparse) - E(dense)] + [E(quantized) - E(dense)], higher is better."""
    threshold = dense + (sparse - dense) + (quantized - dense)
    return Interplay(dense, sparse, quantized, both, threshold, orthogonal=both >= threshold)
