"""Fine-tuning of a whole model on the shots: small steps, strong augmentation, resumable."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.heads import head_of
from models.samples import Samples, TextSamples

__all__ = ["Keeper", "Progress", "TeacherSettings", "fine_tune", "is_text"]

Progress = Callable[[int, int, str], None]

_CONTRAST_TEMPERATURE = 0.1


class Keeper(Protocol):
    """Where a loop keeps its state, a nest of plain values and tensors, in case it is killed."""

    def load(self) -> dict[str, Any] | None:
        """What was saved last, its tensors on the CPU; None where nothing was."""
        ...

    def due(self, size: int = 0) -> bool:
        """Whether saving so many bytes is worth its time now."""
        ...

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace what was saved last."""
        ...

    def part(self, name: str) -> Keeper:
        """The keeper of a loop inside."""
        ...


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


def is_text(samples: Samples) -> bool:
    """Whether the head is refitted on the tuned body (text, whose contrastive loss moves it)."""
    return isinstance(samples, TextSamples)


class _Pairs:
    """Endless batches of positions, two of a class side by side, classes in turn."""

    def __init__(self, labels: Tensor, size: int, generator: torch.Generator) -> None:
        self.size, self.generator = size, generator
        self.by_class = [torch.nonzero(labels == label).flatten() for label in labels.unique()]
        self.waiting: list[int] = []

    def next(self) -> Tensor:
        """The next batch (size,)."""
        while len(self.waiting) < self.size:
            for at in torch.randperm(len(self.by_class), generator=self.generator).tolist():
                own = self.by_class[at]
                picked = own[torch.randperm(len(own), generator=self.generator)[:2]]
                self.waiting += picked.tolist()
        batch, self.waiting = self.waiting[: self.size], self.waiting[self.size :]
        return torch.tensor(batch)


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


def fine_tune(
    model: nn.Module,
    samples: Samples,
    rows: Tensor,
    s: TeacherSettings,
    device: torch.device,
    progress: Progress | None,
    keeper: Keeper | None,
) -> nn.Module:
    """Return a fine-tuned copy. Text keeps its dropout on: it is the augmentation it has.

    Args:
        rows: of the samples to learn from, all with labels.
        keeper: where finished steps are kept; a resumed run ends with the same bits.
    """
    assert samples.labels is not None
    tuned = copy.deepcopy(model).train(is_text(samples))
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
    batches = _Pairs(samples.labels[rows], min(s.batch_size, 2 * len(rows)), generator)
    trained = {name: p for name, p in tuned.named_parameters() if p.requires_grad}
    size = 3 * sum(p.numel() * p.element_size() for p in trained.values())
    loop = _Loop(trained, optimiser, schedule, batches, device)
    forked = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(forked):  # dropout draws from the global generator
        torch.manual_seed(s.seed)
        kept = None if keeper is None else keeper.load()
        for step in range(0 if kept is None else loop.resume(kept), s.steps):
            picked = rows[batches.next()]
            batch = samples.batch(picked, device=device, generator=generator)
            labels = samples.labels[picked].to(device)
            inputs.clear()
            with torch.autocast(device.type, torch.bfloat16, enabled=s.autocast_bf16):
                logits = tuned(*batch)
            loss = F.cross_entropy(logits.float(), labels)
            if s.contrast and is_text(samples):
                loss = loss + s.contrast * _contrast(inputs[0], labels)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(body, 1.0)
            optimiser.step()
            schedule.step()
            if keeper is not None and keeper.due(size):
                keeper.save(loop.state(step + 1))
            if progress is not None:
                progress(step + 1, s.steps, "teacher")
    hook.remove()
    return tuned.eval()


@dataclass
class _Loop:
    """All that the steps change: what fine-tuning begins with that is resumed."""

    trained: dict[str, nn.Parameter]
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    batches: _Pairs
    device: torch.device

    def state(self, steps: int) -> dict[str, Any]:
        """After so many steps."""
        found = {
            "steps": steps,
            "trained": self.trained,
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.batches.generator.get_state(),
            "waiting": self.batches.waiting,
            "random": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            found["cuda"] = torch.cuda.get_rng_state(self.device)
        return found

    @torch.no_grad()
    def resume(self, state: Mapping[str, Any]) -> int:
        """Go back to a state; returns the steps that were taken."""
        for name, value in state["trained"].items():
            self.trained[name].copy_(value)
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.batches.generator.set_state(state["generator"])
        self.batches.waiting = list(state["waiting"])
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)
        return int(state["steps"])
