"""What a change to one layer does to the answers, without running what comes before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compression.sequential import Batch, SegmentLike


class Prefix:
    """A model's answers on one batch, beginning at any segment.

    The segments before it give what they gave when the batch was recorded, since nothing before a
    changed layer sees the change; what lies between segments is run as always. One batch's
    outputs of all segments are held, less than a training step on it holds.

    Where that would not be the same (a segment that runs twice, an output that is overwritten
    later), every answer is a whole pass.
    """

    def __init__(self, model: nn.Module, segments: Sequence[SegmentLike]) -> None:
        self.model, self.segments = model, list(segments)
        self._outputs: list[Any] = []

    def place(self, layer: str) -> int:
        """Position of the segment that holds a layer, by the layer's name; 0 where none does."""
        for at, segment in enumerate(self.segments):
            if layer == segment.name or layer.startswith(f"{segment.name}."):
                return at
        return 0

    @torch.no_grad()
    def record(self, run: Callable[[nn.Module, Batch], Tensor], batch: Batch) -> Tensor:
        """The answer to a batch by the model as it is now, every segment's output kept."""
        seen: list[list[tuple[Any, list[int]]]] = [[] for _ in self.segments]

        def hook(at: int) -> Callable[..., None]:
            def keep(_: nn.Module, args: Any, out: Any) -> None:
                seen[at].append((out, [part._version for part in _tensors(out)]))

            return keep

        handles = [
            segment.module.register_forward_hook(hook(at))
            for at, segment in enumerate(self.segments)
        ]
        try:
            answer = run(self.model, batch)
        finally:
            for handle in handles:
                handle.remove()
        same = all(
            len(calls) == 1 and [part._version for part in _tensors(calls[0][0])] == calls[0][1]
            for calls in seen
        )
        self._outputs = [calls[0][0] for calls in seen] if same else []
        return answer

    @torch.no_grad()
    def answer(self, run: Callable[[nn.Module, Batch], Tensor], batch: Batch, begin: int) -> Tensor:
        """The answer to the recorded batch, the segments from ``begin`` on run anew."""
        with self._given(begin):
            return run(self.model, batch)

    def forget(self) -> None:
        """Let go of the recorded outputs."""
        self._outputs = []

    @contextmanager
    def _given(self, begin: int) -> Iterator[None]:
        replaced = list(zip(self.segments, self._outputs, strict=False))[:begin]
        before = [segment.module.__dict__.get("forward") for segment, _ in replaced]
        try:
            for segment, out in replaced:
                segment.module.__dict__["forward"] = _giving(out)
            yield
        finally:
            for (segment, _), forward in zip(replaced, before, strict=True):
                if forward is None:
                    segment.module.__dict__.pop("forward", None)
                else:
                    segment.module.__dict__["forward"] = forward


def _giving(out: Any) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return out

    return forward


def _tensors(out: Any) -> list[Tensor]:
    if isinstance(out, Mapping):
        out = list(out.values())
    parts = out if isinstance(out, tuple | list) else [out]
    return [part for part in parts if isinstance(part, Tensor)]
