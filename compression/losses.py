"""What a recovering specialist is asked to match: labels, the teacher's logits, its features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

UNLABELLED = -100  # label of an example that has none; cross-entropy leaves it out


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled examples; logits (N, K), labels (N,) or UNLABELLED."""
    total = F.cross_entropy(logits.float(), labels, ignore_index=UNLABELLED, reduction="sum")
    # not F's own mean: it has none of no examples, and asking for their number waits for a GPU
    return total / (labels != UNLABELLED).sum().clamp_min(1)


def temperature_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of softened logits, mean over examples (Hinton et al. 2015)."""
    t = temperature
    log_p = F.log_softmax(teacher.float() / t, dim=-1)
    log_q = F.log_softmax(student.float() / t, dim=-1)
    return t * t * F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")


def square_head(
    student: Sequence[Tensor], teacher: Sequence[Tensor], weights: Tensor | None = None
) -> Tensor:
    """Mean over layers of ||s - t||^2 / ||t||^2 (SquareHead, Kurtic et al. 2023, arXiv 2310.06927).

    Features may have any shape with the batch first. ``weights`` (N, T), 1 for real tokens and 0
    for padding, restricts (N, T, D) features to real tokens.
    """
    terms = []
    for s, t in zip(student, teacher, strict=True):
        s, t = s.float(), t.float()
        if weights is not None and t.ndim == 3 and t.shape[:2] == weights.shape:
            s, t = s * weights[..., None], t * weights[..., None]
        terms.append((s - t).square().sum() / t.square().sum().clamp_min(1e-12))
    return torch.stack(terms).mean()
