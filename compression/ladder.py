"""TACO's gradual transfer: prune half of what remains, recover by distillation, repeat.

Kurtic, Hoefler, Alistarh, "TACO: Task-Aware COmpression" (arXiv 2303.14409): layer-wise pruning
with the task's own Hessians, alternated with distillation from the dense specialist. A rung's
outcome does not depend on the rungs above it, so ladders to 75 % and to 90 % share their first,
and each rung can be climbed by a call of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compression.errors import CompressionError
from compression.keeping import Keeper, part_of, restore
from compression.masks import parse_pattern
from compression.prune import prune_layers, zeros_of
from compression.recovery import Draw, RecoverySettings, divergence, recover
from compression.request import AllocationSettings
from compression.schedules import METHODS
from compression.sequential import Batch, Progress, SegmentLike
from compression.share import share_zeros, told
from compression.training_steps import rung_steps


@dataclass(frozen=True, kw_only=True)
class LadderSettings:
    """What the ladder climbs to and how; ``rungs`` None takes those of ``schedule``."""

    sparsity: float
    pattern: str
    method: str  # of compression.pruners
    rungs: tuple[float, ...] | None
    rel_damp: float
    rows_per_column: float | None
    recovery: RecoverySettings  # of a half-dense rung; see compression.training_steps
    schedule: str = "halving"  # of compression.schedules
    rung_count: int = 4
    density_scaled: bool = True
    total_steps: int | None = None
    compensation: str = "none"  # of compression.compensations
    allocation: AllocationSettings = field(default_factory=AllocationSettings)


def recovery_at(settings: RecoverySettings, sparsity: float, steps: int) -> RecoverySettings:
    """Recovery of one rung: so many steps, draws of its own."""
    return replace(settings, steps=steps, seed=settings.seed * 1000 + round(1000 * sparsity))


def climb(
    model: nn.Module,
    teacher: nn.Module,
    segments: Sequence[SegmentLike],
    *,
    layers: Sequence[str],
    dense: Collection[str],
    taps: Sequence[str],
    calibration: Callable[[], Iterable[Batch]],
    draw: Draw,
    holdout: Sequence[Batch],
    settings: LadderSettings,
    device: torch.device,
    progress: Progress | None = None,
    on_rung: Callable[[float, nn.Module], None] | None = None,
    keeper: Keeper | None = None,
    folder: Path | None = None,
) -> list[dict[str, Any]]:
    """Prune ``model`` in place to the target sparsity, recovering after every rung.

    Weights of ``model`` that are zero already stay zero, so a ladder may be climbed in parts.

    Args:
        segments: of ``model``, in execution order. layers: prunable layers, all of them counted.
        dense: those of them that stay dense. taps: modules compared by SquareHead.
        calibration: the batches of the Hessians. draw, holdout: see :func:`recover`.
        on_rung: called with (sparsity, model) after each rung, before the next begins.
        keeper: where finished rungs, and what is finished within one, are kept.
        folder: for what an allocation solves on its way, see :func:`share_zeros`.

    Returns:
        One dictionary a rung: sparsity reached, sweep loss, kl before and after recovery;
        where zeros are not shared evenly, ``allocation`` with each layer's share.

    Raises:
        CompressionError: an N:M pattern with an allocation: the pattern decides about all layers.
    """
    pattern_ratio = parse_pattern(settings.pattern)
    shares = settings.allocation
    if pattern_ratio is not None and shares.method != "uniform":
        raise CompressionError(
            f"allocation {shares.method}: pattern {settings.pattern} leaves every layer the same "
            "share; take uniform, or the unstructured pattern"
        )
    rungs = settings.rungs
    if rungs is None:
        way = METHODS.load(settings.schedule if pattern_ratio is None else "one_shot")
        rungs = tuple(way(settings.sparsity, settings.rung_count))
    if settings.sparsity == 0 and pattern_ratio is None:
        return []
    sizes = {name: _weights(model, name) for name in layers}
    report: list[dict[str, Any]] = []
    steps = rung_steps(
        rungs,
        steps=settings.recovery.steps,
        density_scaled=settings.density_scaled,
        total=settings.total_steps,
    )
    recoveries = [
        recovery_at(settings.recovery, rung, count)
        for rung, count in zip(rungs, steps, strict=True)
    ]
    kept_rungs = None if keeper is None else keeper.load()
    if kept_rungs is not None:
        report = kept_rungs["report"]
        restore(model, kept_rungs["model"])
    sharing = 0 if shares.method == "uniform" else 4 * len(segments)
    efforts = [sharing + len(segments) + recovery.steps for recovery in recoveries]
    done, total = sum(efforts[: len(report)]), sum(efforts)

    def advance(base: int) -> Progress | None:
        if progress is None:
            return None
        return lambda k, _, note: progress(base + k, total, note)

    def advance_sharing(base: int) -> Progress | None:
        if progress is None:
            return None
        return lambda k, n, note: progress(base + round(sharing * k / n), total, note)

    for rung, recovery in list(zip(rungs, recoveries, strict=True))[len(report) :]:
        inner = part_of(keeper, f"{len(report)}")
        shared = share_zeros(
            model,
            teacher,
            segments,
            calibration,
            sizes=sizes,
            dense=dense,
            sparsity=rung,
            settings=replace(shares, seed=1000 * shares.seed + round(1000 * rung)),
            solver=settings.method,
            rel_damp=settings.rel_damp,
            rows_per_column=settings.rows_per_column,
            device=device,
            autocast_bf16=settings.recovery.autocast_bf16,
            folder=folder,
            progress=advance_sharing(done),
            keeper=part_of(inner, "share"),
        )
        done += sharing
        zeros = shared.zeros
        if pattern_ratio is not None:
            zeros = {name: 0 if name in dense else 1 for name in layers}
        kept, losses = prune_layers(
            model,
            segments,
            calibration,
            zeros,
            method=settings.method,
            compensation=settings.compensation,
            pattern=settings.pattern,
            rel_damp=settings.rel_damp,
            rows_per_column=settings.rows_per_column,
            progress=advance(done),
            keeper=part_of(inner, "walk"),
        )
        done += len(segments)
        one_shot = divergence(model, teacher, holdout) if holdout else float("nan")
        metrics = {"kl_before": one_shot, "kl_after": one_shot}
        if recovery.steps:
            metrics = recover(
                model,
                teacher,
                kept,
                taps=taps,
                draw=draw,
                holdout=holdout,
                settings=recovery,
                device=device,
                progress=advance(done),
                keeper=part_of(inner, "recover"),
            )
        done += recovery.steps
        zero = sum(int(zeros_of(model.get_submodule(name)).sum()) for name in layers)
        reached = zero / sum(sizes.values())
        report.append({"sparsity": reached, "sweep_loss": sum(losses.values()), **metrics})
        if shares.method != "uniform":
            report[-1]["allocation"] = told(shared, sizes, shares.method)
        if keeper is not None and len(report) < len(rungs):
            keeper.save({"report": report, "model": dict(model.named_parameters())})
        if on_rung is not None:
            on_rung(rung, model)
    return report


def _weights(model: nn.Module, name: str) -> int:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, torch.Tensor)
    return weight.numel()


def frozen_copy(model: nn.Module) -> nn.Module:
    """A deep copy in eval mode whose parameters take no gradient: the teacher beside a student."""
    twin = copy.deepcopy(model).eval()
    for parameter in twin.parameters():
        parameter.requires_grad_(False)
    return twin
