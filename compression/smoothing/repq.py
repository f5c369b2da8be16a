"""RepQ-ViT: a scale a channel for calibrating, one a tensor for computing.

Li et al. 2022, "RepQ-ViT: Scale Reparameterization for Post-Training Quantization of Vision
Transformers" (arXiv 2212.08254), section 4.1. Every channel j of a norm's output gets the scale
s_j and the zero point z_j of its own 8-bit range; with their means s and z over the channels,

    r1_j = s_j / s     r2_j = z_j - z
    (x_j + s_j r2_j) / r1_j     has the scale s and the zero point z in every channel,

and what is divided and added here is taken back by the weights and bias that follow. Ours: the
range is the smallest and largest value seen, not a percentile, and the zero points stay real
numbers, since it is the runtime that rounds them. A channel that never changes keeps scale 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compression.smooth import Rescaling

_STEPS = 255  # of 8 bits


def rescale(low: Tensor, high: Tensor, weights: Sequence[Tensor]) -> Rescaling | None:
    """Scales and shifts of a norm's channels; None where no channel changes."""
    s = (high - low) / _STEPS  # (C,)
    usual = s > 0
    if not bool(usual.any()):
        return None
    z = -low / torch.where(usual, s, torch.ones_like(s))
    mean_s, mean_z = s[usual].mean(), z[usual].mean()
    scale, shift = s / mean_s, -s * (z - mean_z)
    return Rescaling(
        torch.where(usual, scale, torch.ones_like(s)),
        torch.where(usual, shift, torch.zeros_like(s)),
    )
