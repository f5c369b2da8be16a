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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.checkpoint import Bundle
from models.errors import GeneralistError
from models.folding import fold_batchnorm
from models.heads import covers, features, head_of, restrict_head, with_head
from models.linear_probe import (
    Probe,
    choose_strength,
    fit_probe,
    stratified_folds,
    tempered_loss,
)
from models.samples import Samples, TextSamples

__all__ = ["TeacherSettings", "adapt"]

Progress = Callable[[int, int, str], None]

_EVAL_BATCH = 64
_CONTRAST_TEMPERATURE = 0.1


@dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """How the body is fine-tuned and how the choice is made.

    Attributes:
        steps: of fine-tuning; 0 trains the head alone.
        batch_size: examples a step, in pairs of a class.
        lr, head_lr: peak learning rates. weight_decay: AdamW's.
        contrast: weight of the supervised contrastive loss (text only).
        alphas: parts of the way to the fine-tuned weights that are tried.
        folds: of the cross-validation; one fold's shots are left out to choose alpha.
        seed: of every draw. autocast_bf16: bfloat16 in the forward passes.
    """

    steps: int
    batch_size: int
    lr: float
    head_lr: float
    weight_decay: float
    contrast: float = 1.0
    alphas: tuple[float, ...] = (0.5, 1.0)
    folds: int = 4
    seed: int = 0
    autocast_bf16: bool = False


def adapt(
    generalist: Bundle,
    support: Samples,
    classes: Sequence[str],
    *,
    settings: TeacherSettings,
    device: torch.device,
    progress: Progress | None = None,
) -> tuple[Bundle, dict[str, float]]:
    """Adapt ``generalist`` to ``classes`` with the labelled ``support`` set; nothing else is seen.

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
    if s.steps and fold_of is not None:
        train, held = (fold_of != 0).nonzero().flatten(), (fold_of == 0).nonzero().flatten()
        fit_head(model, train)
        tuned = _fine_tune(model, support, train, s, device, _shifted(progress, 0, total))
        for tried in (0.0, *s.alphas):
            between = _between(model, tuned, tried)
            if tried and _is_text(support):
                fit_head(between, train)
            losses[tried] = _loss(between, support, held, device)
        # ties (shots that are told apart perfectly) go to the tuned body for text, whose classes
        # the contrastive loss spreads apart, and to the generalist's own body for images
        order = sorted(losses, reverse=_is_text(support))
        alpha = min(order, key=lambda key: round(losses[key], 4))
        metrics |= {f"held_loss_{key:g}": value for key, value in losses.items()}
    fit_head(model)
    if alpha:
        everything = torch.arange(len(support))
        tuned = _fine_tune(
            model, support, everything, s, device, _shifted(progress, s.steps, total)
        )
        blended = _between(model, tuned, alpha)
        if _is_text(support):
            fit_head(blended)
        model = blended
    if progress is not None:
        progress(total, total, "teacher")
    bundle.model = model.cpu().eval()
    return bundle, {**metrics, "alpha": alpha}


def _is_text(samples: Samples) -> bool:
    """Whether the head is refitted on the tuned body (text, whose contrastive loss moves it)."""
    return isinstance(samples, TextSamples)


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


def _pairs(labels: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of positions, two of a class side by side, classes in turn."""
    by_class = [torch.nonzero(labels == label).flatten() for label in labels.unique()]
    waiting: list[int] = []
    while True:
        while len(waiting) < size:
            for at in torch.randperm(len(by_class), generator=generator).tolist():
                own = by_class[at]
                picked = own[torch.randperm(len(own), generator=generator)[:2]]
                waiting += picked.tolist()
        yield torch.tensor(waiting[:size])
        waiting = waiting[size:]


def _contrast(x: Tensor, labels: Tensor) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, arXiv 2004.11362, eq. 2) of (N, D)."""
    z = F.normalize(x.float(), dim=1)
    itself = torch.eye(len(labels), dtype=torch.bool, device=x.device)
    similarity = (z @ z.T / _CONTRAST_TEMPERATURE).masked_fill(itself, -1e9)
    positive = (labels[:, None] == labels[None]) & ~itself
    log_p = similarity - similarity.logsumexp(1, keepdim=True)
    counts = positive.sum(1)
    mean = (log_p * positive).sum(1) / counts.clamp_min(1)
    return -mean[counts > 0].mean() if bool((counts > 0).any()) else mean.sum() * 0.0


def _fine_tune(
    model: nn.Module,
    samples: Samples,
    rows: Tensor,
    s: TeacherSettings,
    device: torch.device,
    progress: Progress | None,
) -> nn.Module:
    """Return a fine-tuned copy. Text keeps its dropout on: it is the augmentation it has."""
    assert samples.labels is not None
    tuned = copy.deepcopy(model).train(_is_text(samples))
    generator = torch.Generator().manual_seed(s.seed)
    head_name, head = head_of(tuned)
    tables = {id(m.weight) for m in tuned.modules() if isinstance(m, nn.Embedding)}
    body = [
        p
        for name, p in tuned.named_parameters()
        if not name.startswith(f"{head_name}.") and id(p) not in tables
    ]
    for parameter in tuned.parameters():
        parameter.requires_grad_(id(parameter) not in tables)
    groups = [
        {"params": [p for p in body if p.ndim > 1], "lr": s.lr, "weight_decay": s.weight_decay},
        {"params": [p for p in body if p.ndim <= 1], "lr": s.lr, "weight_decay": 0.0},
        {"params": list(head.parameters()), "lr": s.head_lr, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups)
    warm = max(1, s.steps // 10)

    def rate(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, s.steps - warm)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    inputs: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    batches = _pairs(samples.labels[rows], min(s.batch_size, 2 * len(rows)), generator)
    forked = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(forked):  # dropout draws from the global generator
        torch.manual_seed(s.seed)
        for step in range(s.steps):
            picked = rows[next(batches)]
            batch = samples.batch(picked, device=device, generator=generator)
            labels = samples.labels[picked].to(device)
            inputs.clear()
            with torch.autocast(device.type, torch.bfloat16, enabled=s.autocast_bf16):
                logits = tuned(*batch)
            loss = F.cross_entropy(logits.float(), labels)
            if s.contrast and _is_text(samples):
                loss = loss + s.contrast * _contrast(inputs[0], labels)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(body, 1.0)
            optimiser.step()
            schedule.step()
            if progress is not None:
                progress(step + 1, s.steps, "teacher")
    hook.remove()
    return tuned.eval()
