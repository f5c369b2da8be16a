"""SmoothQuant: activations and weights share the difficulty of being rounded.

Xiao et al. 2022, arXiv 2211.10438, equation 4 with alpha = 0.5:

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)

so that a channel and the weights that read it have the same largest size. Ours: the largest
weight is that of all layers which read the norm. A channel that is always zero, or that no weight
reads, keeps scale 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compression.smooth import Rescaling

_ALPHA = 0.5


def rescale(low: Tensor, high: Tensor, weights: Sequence[Tensor]) -> Rescaling:
    """Scales of a norm's channels; no shift."""
    inputs = torch.maximum(low.abs(), high.abs())
    reading = torch.cat(list(weights)).abs().amax(dim=0)
    usual = (inputs > 0) & (reading > 0)
    scale = inputs**_ALPHA / reading ** (1 - _ALPHA)
    return Rescaling(torch.where(usual, scale, torch.ones_like(scale)), torch.zeros_like(scale))
