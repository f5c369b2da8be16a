"""Recovery: distil the teacher into the pruned model while its zeros stay zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from compression.losses import cross_entropy, square_head, temperature_kl
from compression.prune import hold
from compression.sequential import Batch, Progress

Draw = Callable[[torch.Generator], tuple[Batch, Tensor]]


@dataclass(frozen=True, kw_only=True)
class RecoverySettings:
    """How one rung is recovered. Weights of the three losses; ``seed`` fixes the draws."""

    steps: int
    lr: float
    weight_decay: float
    warmup: float  # share of the steps
    temperature: float
    ce: float
    kl: float
    square_head: float
    ema_decay: float
    autocast_bf16: bool
    check_every: int  # steps between two looks at the held-out batches
    seed: int


class _Features:
    """First outputs of the tapped modules, newest forward pass only."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.values: dict[str, Tensor] = {}
        self._handles = [
            model.get_submodule(name).register_forward_hook(self._hook(name)) for name in names
        ]

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, out: Any) -> None:
            self.values[name] = out[0] if isinstance(out, tuple | list) else out

        return hook

    def take(self) -> list[Tensor]:
        values = list(self.values.values())
        self.values = {}
        return values

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def _token_weights(batch: Batch) -> Tensor | None:
    """A text batch's attention mask; None for images."""
    return batch[1].float() if len(batch) > 1 and batch[1].ndim == 2 else None


@torch.no_grad()
def divergence(student: nn.Module, teacher: nn.Module, batches: Sequence[Batch]) -> float:
    """Mean KL(teacher || student) over batches at temperature 1, in nats."""
    total, count = 0.0, 0
    for batch in batches:
        n = len(batch[0])
        total += float(temperature_kl(student(*batch), teacher(*batch), 1.0)) * n
        count += n
    return total / max(count, 1)


def recover(
    student: nn.Module,
    teacher: nn.Module,
    kept: Mapping[str, Tensor],
    *,
    taps: Sequence[str],
    draw: Draw,
    holdout: Sequence[Batch],
    settings: RecoverySettings,
    device: torch.device,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Fine-tune ``student`` in place with masks held; the best averaged weights are kept.

    Args:
        student, teacher: called as ``model(*batch)``; both stay in eval mode, so dropout and
            batch statistics play no part.
        kept: masks a layer; removed weights are zero after every step.
        taps: modules whose outputs SquareHead compares, by name, present in both models.
        draw: gives (batch, labels (N,), UNLABELLED where there is none) from a generator.
        holdout: unaugmented batches left out of ``draw``, on which the averaged weights are
            judged by their divergence from the teacher; empty keeps the last average.
        settings: see :class:`RecoverySettings`.

    Returns:
        ``kl_before``, ``kl_after`` on the held-out batches, ``best_step``, last training ``loss``.
    """
    s = settings
    generator = torch.Generator().manual_seed(s.seed)
    # embedding tables stay as they are: few of their rows occur in the shots, and an optimiser
    # over all of them costs more than the rest of the step
    parameters = [
        parameter
        for module in student.modules()
        if not isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    ]
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(parameters, lr=s.lr, weight_decay=s.weight_decay)
    warm = max(1, round(s.warmup * s.steps))

    def rate(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, s.steps - warm)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(s.ema_decay))
    before = divergence(student, teacher, holdout) if holdout else math.nan
    best, best_step = before, 0
    best_state = _state(student) if holdout else None
    student_features, teacher_features = _Features(student, taps), _Features(teacher, taps)
    loss_value = math.nan
    try:
        for step in range(s.steps):
            batch, labels = draw(generator)
            with torch.autocast(device.type, torch.bfloat16, enabled=s.autocast_bf16):
                with torch.no_grad():
                    target = teacher(*batch)
                logits = student(*batch)
            theirs, ours = teacher_features.take(), student_features.take()
            loss = s.ce * cross_entropy(logits, labels)
            loss = loss + s.kl * temperature_kl(logits, target, s.temperature)
            if s.square_head and taps:
                loss = loss + s.square_head * square_head(ours, theirs, _token_weights(batch))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            hold(student, kept)
            average.update_parameters(student)
            last = step + 1 == s.steps
            if holdout and ((step + 1) % s.check_every == 0 or last):
                kl = divergence(average.module, teacher, holdout)
                teacher_features.take()
                if not math.isfinite(best) or kl < best:
                    best, best_step, best_state = kl, step + 1, _state(average.module)
            if progress is not None:
                progress(step + 1, s.steps, "recover")
            if last:
                loss_value = float(loss.detach())
    finally:
        student_features.remove()
        teacher_features.remove()
    if best_state is None:
        best_state, best_step = _state(average.module), s.steps
    student.load_state_dict(best_state)
    hold(student, kept)
    return {"kl_before": before, "kl_after": best, "best_step": best_step, "loss": loss_value}


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
