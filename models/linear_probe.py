"""Multinomial logistic regression on frozen features, pulled towards rows that are given.

minimise over W, b:  1/N sum_n CE(W x_n + b, y_n) + lambda/2 s ||W - W0||^2,
with s the mean squared norm of the centred features, so that a strength lambda means the same
for features of any scale. W0 = 0 is ridge-penalised logistic regression; W0 = the generalist's
own rows is L2-SP (Li, Grandvalet & Davoine 2018, "Explicit Inductive Bias for Transfer Learning
with Convolutional Networks") on the last layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "STRENGTHS",
    "Probe",
    "choose_strength",
    "fit_probe",
    "stratified_folds",
    "tempered_loss",
]

# math.inf keeps the given rows untouched
STRENGTHS = (math.inf, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4)


@dataclass(frozen=True)
class Probe:
    """A linear head: weight (K, D) and bias (K,), float64 on the CPU."""

    weight: Tensor
    bias: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """Return (N, K) for features (N, D)."""
        return x.double().cpu() @ self.weight.T + self.bias


def fit_probe(
    x: Tensor,
    labels: Tensor,
    classes: int,
    strength: float,
    *,
    start: Probe | None = None,
    max_iterations: int = 300,
) -> Probe:
    """Fit a head to features ``x`` (N, D) and ``labels`` (N,).

    Args:
        strength: lambda above; infinity returns ``start`` as it is.
        start: the rows to stay near to; zeros if None. Its bias is where the fit starts, but is
            not pulled back to.
    """
    x, labels = x.detach().double().cpu(), labels.cpu()
    weight_0 = x.new_zeros(classes, x.shape[1]) if start is None else start.weight
    bias_0 = x.new_zeros(classes) if start is None else start.bias
    if math.isinf(strength):
        return Probe(weight_0, bias_0)
    # in features of mean zero and mean squared norm one the bias is decoupled from the weights
    # and the penalty is lambda/2 ||V - V0||^2, V = sqrt(s) W; undone at the end
    centre = x.mean(0)  # (D,)
    scale = float((x - centre).square().sum(1).mean().sqrt().clamp_min(1e-12))  # sqrt(s)
    unit = (x - centre) / scale  # (N, D)
    v_0 = weight_0 * scale
    v = v_0.clone().requires_grad_()
    c = (bias_0 + weight_0 @ centre).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [v, c],
        max_iter=max_iterations,
        tolerance_grad=1e-7,
        tolerance_change=1e-11,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(unit @ v.T + c, labels)
        loss = loss + 0.5 * strength * (v - v_0).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    weight = v.detach() / scale
    return Probe(weight, c.detach() - weight @ centre)


def stratified_folds(labels: Tensor, folds: int, generator: torch.Generator) -> Tensor:
    """Return a fold number for each example, each class spread evenly over the folds."""
    fold_of = torch.empty(len(labels), dtype=torch.int64)
    offset = 0
    for label in labels.unique(sorted=True).tolist():
        rows = torch.nonzero(labels.cpu() == label).flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        # the offset goes on from class to class, so that the folds are equally large
        fold_of[rows] = (torch.arange(len(rows)) + offset) % folds
        offset += len(rows)
    return fold_of


def tempered_loss(logits: Tensor, labels: Tensor) -> float:
    """Return the mean cross-entropy of logits (N, K) at the temperature that suits them best.

    Models are compared by what they tell apart, not by how sure they are: of two fits the one
    with larger weights, or of a generalist that has seen the shots the one that was sharpened on
    them, would else win by confidence alone.
    """
    logits, labels = logits.detach().double().cpu(), labels.cpu()
    scales = torch.logspace(-1.5, 1.5, 61, dtype=torch.float64)  # of the logits: 1/32 to 32
    return min(F.cross_entropy(scale * logits, labels).item() for scale in scales)


def choose_strength(
    x: Tensor,
    labels: Tensor,
    classes: int,
    fold_of: Tensor,
    *,
    start: Probe | None = None,
    strengths: Sequence[float] = STRENGTHS,
    views: int = 1,
) -> tuple[float, dict[float, tuple[float, float]]]:
    """Choose the strength with the least held-out cross-entropy.

    Where rows are given, each strength is scored at its best temperature (`tempered_loss`).

    Args:
        x: features (views * N, D); view v of example n is row v * N + n. The first view is the
            example itself: it alone is scored, all views are fitted.
        labels, fold_of: (N,).
        start: as for `fit_probe`.
        strengths: what to choose from; infinity counts only where ``start`` is given.

    Returns:
        the strength, and for each strength the held-out (cross-entropy, accuracy).
    """
    scores: dict[float, tuple[float, float]] = {}
    labels, folds = labels.cpu(), int(fold_of.max()) + 1
    for strength in strengths:
        if math.isinf(strength) and start is None:
            continue
        logits = torch.empty(len(labels), classes, dtype=torch.float64)
        for fold in range(folds):
            train, held = fold_of != fold, fold_of == fold
            probe = fit_probe(
                x[train.repeat(views)],
                labels[train].repeat(views),
                classes,
                strength,
                start=start,
            )
            logits[held] = probe.logits(x[: len(labels)][held])
        correct = int((logits.argmax(1) == labels).sum())
        if start is None:
            loss = F.cross_entropy(logits, labels).item()
        else:
            loss = tempered_loss(logits, labels)
        scores[strength] = (loss, correct / len(labels))
    return min(scores, key=lambda key: scores[key][0]), scores
