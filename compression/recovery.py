"""Recovery: distil the teacher into the pruned model while its zeros stay zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from compression.average import Average
from compression.keeping import Keeper, Training
from compression.losses import cross_entropy, square_head, temperature_kl
from compression.prune import hold
from compression.sequential import Batch, Progress
from compression.trained import METHODS

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
    trained: str = "full"  # of compression.trained
    rank: int = 16  # of what compression.trained.low_rank trains


class _Tapped(nn.Module):
    """A model that also returns what its tapped modules put out: (logits, *features)."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self._seen: dict[str, Tensor] = {}
        self._handles = [
            model.get_submodule(name).register_forward_hook(self._hook(name)) for name in names
        ]

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, out: Any) -> None:
            self._seen[name] = out[0] if isinstance(out, tuple | list) else out

        return hook

    def forward(self, *batch: Tensor) -> tuple[Tensor, ...]:
        logits = self.model(*batch)
        features, self._seen = tuple(self._seen.values()), {}
        return (logits, *features)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


class _Matched(nn.Module):
    """The student on a batch and the teacher's features: its logits and its SquareHead loss."""

    def __init__(self, tapped: _Tapped, inputs: int) -> None:
        super().__init__()
        self.tapped, self.inputs = tapped, inputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        batch, theirs = tensors[: self.inputs], tensors[self.inputs :]
        logits, *ours = self.tapped(*batch)
        if not theirs:
            return logits, logits.new_zeros(())
        return logits, square_head(ours, theirs, _token_weights(batch))


Call = Callable[..., tuple[Tensor, ...]]


def _replayed(teacher: _Tapped, batch: Batch) -> Call:
    """The teacher as one CUDA graph: the same numbers without a launch an operation."""
    held = tuple(part.clone() for part in batch)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # libraries choose their kernels outside the capture
            teacher(*held)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = teacher(*held)

    def call(*given: Tensor) -> tuple[Tensor, ...]:
        for place, part in zip(held, given, strict=True):
            place.copy_(part)
        graph.replay()
        return out

    return call


def _prepared(
    student: _Matched, teacher: _Tapped, batch: Batch, settings: RecoverySettings, match: bool
) -> tuple[Call, Call]:
    """Both calls; as CUDA graphs where every batch has one shape (images on a GPU).

    A student of a few million parameters keeps a large GPU waiting for launches.
    """

    def plain(*given: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return teacher(*given)

    if not (batch[0].is_cuda and len(batch) == 1):
        return student, plain
    # the cache of cast weights would be filled during the capture and never again
    with torch.autocast(
        "cuda", torch.bfloat16, enabled=settings.autocast_bf16, cache_enabled=False
    ):
        with torch.no_grad():
            target = _replayed(teacher, batch)
            seen = target(*batch)[1:] if match else ()
        given = (*batch, *(feature.clone() for feature in seen))
        graphed = torch.cuda.make_graphed_callables(student, given, allow_unused_input=True)
    return cast(Call, graphed), target


def _token_weights(batch: Batch) -> Tensor | None:
    """A text batch's attention mask; None for images."""
    return batch[1].float() if len(batch) > 1 and batch[1].ndim == 2 else None


@torch.no_grad()
def divergence(student: nn.Module, teacher: nn.Module, batches: Sequence[Batch]) -> float:
    """Mean KL(teacher || student) over batches at temperature 1, in nats."""
    return _divergence_from(_answers(teacher, batches), student, batches)


@torch.no_grad()
def _answers(teacher: nn.Module, batches: Sequence[Batch]) -> list[Tensor]:
    """The teacher's logits of every batch: it is asked once, however often students are judged."""
    return [teacher(*batch) for batch in batches]


@torch.no_grad()
def _divergence_from(
    target: Sequence[Tensor], student: nn.Module, batches: Sequence[Batch]
) -> float:
    total, count = 0.0, 0
    for batch, theirs in zip(batches, target, strict=True):
        n = len(batch[0])
        total += float(temperature_kl(student(*batch), theirs, 1.0)) * n
        count += n
    return total / max(count, 1)


def _channels_last(batch: Batch) -> Batch:
    """Images as N, H, W, C in memory; anything else as it is."""
    return tuple(
        part.contiguous(memory_format=torch.channels_last) if part.ndim == 4 else part
        for part in batch
    )


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
    keeper: Keeper | None = None,
) -> dict[str, float]:
    """Fine-tune ``student`` in place with masks held; the best averaged weights are kept.

    Args:
        student, teacher: called as ``model(*batch)``; both stay in eval mode, so dropout and
            batch statistics play no part.
        kept: masks a layer; removed weights are zero after every step, whatever is trained.
        taps: modules whose outputs SquareHead compares, by name, present in both models.
        draw: gives (batch, labels (N,), UNLABELLED where there is none) from a generator.
        holdout: unaugmented batches left out of ``draw``, on which the averaged weights are
            judged by their divergence from the teacher; empty keeps the last average.
        settings: see :class:`RecoverySettings`.
        keeper: where finished steps are kept; None keeps nothing.

    Returns:
        ``kl_before``, ``kl_after`` on the held-out batches, ``best_step``, last training ``loss``;
        without a step, or where nothing is trained, the first two, equal.
    """
    s = settings
    trained = METHODS.load(s.trained)(student, kept, rank=s.rank, seed=s.seed)
    parameters = trained.parameters
    if not parameters or not s.steps:
        trained.merge()
        still = divergence(student, teacher, holdout) if holdout else math.nan
        return {"kl_before": still, "kl_after": still}
    if device.type == "cuda":  # what its convolutions compute on: no copy around each of them
        for model in (student, teacher):
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        holdout = [_channels_last(batch) for batch in holdout]
    generator = torch.Generator().manual_seed(s.seed)
    optimiser = torch.optim.AdamW(
        parameters, lr=s.lr, weight_decay=s.weight_decay, fused=device.type == "cuda"
    )
    warm = max(1, round(s.warmup * s.steps))

    def shown() -> tuple[Batch, Tensor]:
        batch, labels = draw(generator)
        return (_channels_last(batch) if device.type == "cuda" else batch), labels

    def rate(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, s.steps - warm)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    average = Average(student, s.ema_decay)
    loop = Training(student, average, optimiser, schedule, generator)
    size = loop.size
    kept_state = None if keeper is None else keeper.load()
    target_held = _answers(teacher, holdout)
    before = math.nan
    if holdout and kept_state is None:
        before = _divergence_from(target_held, student, holdout)
    best, best_step = before, 0
    best_state = _state(student) if holdout else None
    match = bool(s.square_head and taps)
    tapped = _Tapped(student, taps if match else ()), _Tapped(teacher, taps if match else ())
    loss_value = math.nan
    try:
        batch, labels = shown()
        ours, theirs = _prepared(_Matched(tapped[0], len(batch)), tapped[1], batch, s, match)
        begin = 0
        if kept_state is not None:
            # the batch above only showed the shape: the generator goes back to where it was
            begin = loop.resume(kept_state)
            before, best, best_step = (kept_state[key] for key in ("before", "best", "best_step"))
            if best_state is not None:
                best_state |= kept_state["best_state"]
        for step in range(begin, s.steps):
            if step:
                batch, labels = shown()
            with torch.autocast(device.type, torch.bfloat16, enabled=s.autocast_bf16):
                target, *features = theirs(*batch)
                logits, unlike = ours(*batch, *features)
            loss = s.ce * cross_entropy(logits, labels)
            loss = loss + s.kl * temperature_kl(logits, target, s.temperature)
            if match:
                loss = loss + s.square_head * unlike
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            trained.hold()
            average.update()
            last = step + 1 == s.steps
            if holdout and ((step + 1) % s.check_every == 0 or last):
                kl = _divergence_from(target_held, average.module, holdout)
                if not math.isfinite(best) or kl < best:
                    best, best_step, best_state = kl, step + 1, _state(average.module)
            if progress is not None:
                progress(step + 1, s.steps, "recover")
            if last:
                loss_value = float(loss.detach())
            elif keeper is not None and keeper.due(size):
                told = {"before": before, "best": best, "best_step": best_step}
                keeper.save({**loop.state(step + 1), **told, "best_state": loop.moved(best_state)})
    finally:
        for part in tapped:
            part.remove()
    if best_state is None:
        best_state, best_step = _state(average.module), s.steps
    student.load_state_dict(best_state)
    trained.merge()
    hold(student, kept)
    return {"kl_before": before, "kl_after": best, "best_step": best_step, "loss": loss_value}


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
