"""The teacher: the dense specialist, adapted from the shots alone.

1. Head: a logistic regression on frozen features, pulled towards the generalist's own rows where
   the classes are known (L2-SP), towards zero where they are new; strength by cross-validation.
2. Body: fine-tuned with small steps and strong augmentation; text adds the supervised contrastive
   loss, which is what makes few-shot sentence encoders good (SetFit, arXiv 2209.11055).
3. Choice: shots left out decide how far to go from the head-only model towards the fine-tuned one
   (weight interpolation, WiSE-FT, arXiv 2109.01903); zero is an answer. Then all shots are used.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.checkpoint import Bundle
from models.errors import GeneralistError
from models.finetune import Keeper, Progress, TeacherSettings, fine_tune, is_text
from models.folding import fold_batchnorm
from models.heads import covers, features, head_of, restrict_head, with_head
from models.linear_probe import (
    Probe,
    choose_strength,
    fit_probe,
    stratified_folds,
    tempered_loss,
)
from models.samples import Samples

__all__ = ["TeacherSettings", "adapt"]

_EVAL_BATCH = 64


def adapt(
    generalist: Bundle,
    support: Samples,
    classes: Sequence[str],
    *,
    settings: TeacherSettings,
    device: torch.device,
    progress: Progress | None = None,
    keeper: Keeper | None = None,
) -> tuple[Bundle, dict[str, float]]:
    """Adapt ``generalist`` to ``classes`` with the labelled ``support`` set; nothing else is seen.

    ``keeper`` keeps the steps that are finished, for a run that is killed; None keeps nothing.

    Returns:
        The teacher on the CPU, BatchNorm folded, labels set; and metrics: ``strength`` of the
        head's pull (inf: rows untouched), ``cv_accuracy`` and ``cv_loss`` of the head, ``alpha``
        chosen, and the left-out loss at each alpha.

    Raises:
        GeneralistError: the support set has no labels, or misses a class.
    """
    labels = support.labels
    if labels is None or set(labels.tolist()) != set(range(len(classes))):
        raise GeneralistError("support: every class needs at least one labelled example")
    s = settings
    generator = torch.Generator().manual_seed(s.seed)
    known = covers(generalist.labels, classes)
    bundle = restrict_head(generalist, classes) if known else with_head(generalist, classes)
    if bundle.modality == "image":
        bundle = fold_batchnorm(bundle, support.batch(torch.arange(2), device=torch.device("cpu")))
    model = bundle.model.to(device)

    x = _features(model, support, device)
    start = _probe_of(model) if known else None
    smallest = int(labels.bincount().min())
    if smallest < 2:  # nothing to leave out: the head is fitted with a middling pull
        strength, scores, fold_of = 0.01, {0.01: (math.nan, math.nan)}, None
    else:
        fold_of = stratified_folds(labels, min(s.folds, smallest), generator)
        strength, scores = choose_strength(x, labels, len(classes), fold_of, start=start)
    metrics = {
        "strength": strength,
        "cv_loss": scores[strength][0],
        "cv_accuracy": scores[strength][1],
    }

    def fit_head(target: nn.Module, rows: Tensor | None = None) -> None:
        found = x if target is model else _features(target, support, device)
        if rows is not None:
            found, wanted = found[rows], labels[rows]
        else:
            wanted = labels
        _write(target, fit_probe(found, wanted, len(classes), strength, start=start))

    alpha, losses, total = 0.0, {}, 2 * s.steps
    chosen = None if keeper is None else keeper.load()
    if chosen is not None:
        alpha, losses = chosen["alpha"], chosen["losses"]
    elif s.steps and fold_of is not None:
        train, held = (fold_of != 0).nonzero().flatten(), (fold_of == 0).nonzero().flatten()
        fit_head(model, train)
        tuned = fine_tune(
            model, support, train, s, device, _shifted(progress, 0, total), _part(keeper, "part")
        )
        for tried in (0.0, *s.alphas):
            between = _between(model, tuned, tried)
            if tried and is_text(support):
                fit_head(between, train)
            losses[tried] = _loss(between, support, held, device)
        # ties (shots that are told apart perfectly) go to the tuned body for text, whose classes
        # the contrastive loss spreads apart, and to the generalist's own body for images
        order = sorted(losses, reverse=is_text(support))
        alpha = min(order, key=lambda key: round(losses[key], 4))
        if keeper is not None:  # all that is left of the first fine-tuning
            keeper.save({"alpha": alpha, "losses": losses})
    metrics |= {f"held_loss_{key:g}": value for key, value in losses.items()}
    fit_head(model)
    if alpha:
        everything = torch.arange(len(support))
        later = _shifted(progress, s.steps, total)
        tuned = fine_tune(model, support, everything, s, device, later, _part(keeper, "all"))
        blended = _between(model, tuned, alpha)
        if is_text(support):
            fit_head(blended)
        model = blended
    if progress is not None:
        progress(total, total, "teacher")
    bundle.model = model.cpu().eval()
    return bundle, {**metrics, "alpha": alpha}


def _part(keeper: Keeper | None, name: str) -> Keeper | None:
    return None if keeper is None else keeper.part(name)


def _shifted(progress: Progress | None, base: int, total: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, _, note: progress(base + done, total, note)


@torch.no_grad()
def _features(model: nn.Module, samples: Samples, device: torch.device) -> Tensor:
    """The head's inputs (N, D) of every example, unaugmented."""
    rows = torch.arange(len(samples)).split(_EVAL_BATCH)
    return torch.cat([features(model, samples.batch(r, device=device)).cpu() for r in rows])


def _probe_of(model: nn.Module) -> Probe:
    head = head_of(model)[1]
    bias = torch.zeros(head.out_features) if head.bias is None else head.bias.detach()
    return Probe(head.weight.detach().cpu().double(), bias.cpu().double())


@torch.no_grad()
def _write(model: nn.Module, probe: Probe) -> None:
    head = head_of(model)[1]
    head.weight.copy_(probe.weight.to(head.weight))
    if head.bias is not None:
        head.bias.copy_(probe.bias.to(head.bias))


@torch.no_grad()
def _loss(model: nn.Module, samples: Samples, rows: Tensor, device: torch.device) -> float:
    """Cross-entropy at its best temperature on some examples, unaugmented."""
    assert samples.labels is not None
    parts = [model(*samples.batch(part, device=device)).cpu() for part in rows.split(_EVAL_BATCH)]
    return tempered_loss(torch.cat(parts), samples.labels[rows])


@torch.no_grad()
def _between(a: nn.Module, b: nn.Module, alpha: float) -> nn.Module:
    """A model whose parameters lie ``alpha`` of the way from ``a`` to ``b``."""
    mixed = copy.deepcopy(a)
    for parameter, other in zip(mixed.parameters(), b.parameters(), strict=True):
        parameter.lerp_(other, alpha)
    return mixed
