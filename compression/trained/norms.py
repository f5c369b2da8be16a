"""Biases and the parameters of norms alone: a few in a thousand of all.

PERP (Zimmer, Andoni, Spiegel, Pokutta 2023, arXiv 2312.15230, section 3.1) finds that retraining
them recovers most of what full retraining does at moderate sparsity. No pruned weight takes a
step, so no mask is needed, and the optimiser's state is as small as what it trains.

Ours differs: what is trained is every parameter that is a vector (scale and shift of a norm, a
bias, a layer scale), wherever it is; the head's matrix stays as the teacher taught it, where PERP
may train a language model's as well. Statistics of BatchNorm are folded away before.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from compression.trainable import Trainable, only, outside_embeddings


def vectors(student: nn.Module) -> list[nn.Parameter]:
    """Parameters with one axis, outside embedding tables."""
    return [parameter for parameter in outside_embeddings(student) if parameter.ndim == 1]


def choose(student: nn.Module, kept: Mapping[str, Tensor], *, rank: int, seed: int) -> Trainable:
    """Vectors alone; ``kept``, ``rank`` and ``seed`` play no part."""
    return Trainable(only(student, vectors(student)))
