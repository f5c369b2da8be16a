"""Block-sequential walks: each segment sees inputs made by the already compressed prefix.

One segment's Hessians and one position's activations are held at a time, so memory does not grow
with depth. Where a segment's input is the previous one's output, it is computed from that alone;
where something lies between (a norm before a downsampling convolution), the prefix is run again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compression.errors import CompressionError
from compression.hessian import HessianAccumulator
from compression.layers import Layer, as_layer, matrix_of

Batch = tuple[Tensor, ...]
Visit = Callable[[str, Layer, HessianAccumulator], None]
Progress = Callable[[int, int, str], None]

_FEWEST_ROWS = 4096  # thinning never goes below this many inputs a layer


class SegmentLike(Protocol):
    """A named piece of the model, run in the order given."""

    @property
    def name(self) -> str: ...
    @property
    def module(self) -> nn.Module: ...


class _Reached(Exception):
    """Raised by a hook to end a forward pass once the wanted input is in hand."""


@dataclass
class _Call:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def layers_of(segment: SegmentLike, wanted: Collection[str]) -> dict[str, Layer]:
    """Qualified name -> layer for the wanted Linear and Conv2d layers inside a segment."""
    found: dict[str, Layer] = {}
    for inner, module in segment.module.named_modules():
        name = f"{segment.name}.{inner}" if inner else segment.name
        if name in wanted:
            found[name] = as_layer(name, module)
    return found


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple | list) else value


def _capture(model: nn.Module, module: nn.Module, batch: Batch) -> _Call:
    """The call that ``module`` receives when the model runs on ``batch``."""
    calls: list[_Call] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(_Call(args, kwargs))
        raise _Reached

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        model(*batch)
    except _Reached:
        pass
    finally:
        handle.remove()
    if not calls:
        raise CompressionError(f"segment {type(module).__name__} is not reached by the model")
    return calls[0]


@dataclass(frozen=True)
class _Flow:
    """What one pass showed of each segment.

    Attributes:
        chained: its first argument is its predecessor's output, untouched, and the rest unchanged.
        overwrites: it writes into its first argument, so that it cannot be run on it twice.
    """

    chained: list[bool]
    overwrites: list[bool]


def _flow(model: nn.Module, segments: Sequence[SegmentLike], batch: Batch) -> _Flow:
    """Run once and look at what segments hand on.

    An activation between two segments that works in place hands on the very tensor that the first
    one gave, with other values in it: what tells is the tensor's count of writes.
    """
    entered: dict[int, int] = {}
    seen: dict[int, tuple[_Call, Any]] = {}
    left: dict[int, int] = {}
    overwrites = [False] * len(segments)
    handles = []
    for i, segment in enumerate(segments):

        def before(_: nn.Module, args: tuple[Any, ...], i: int = i) -> None:
            entered[i] = _writes(args)

        def after(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, i: int = i
        ) -> None:
            seen[i], left[i] = (_Call(args, kwargs), out), _writes((_first(out),))
            overwrites[i] = _writes(args) != entered[i]

        handles.append(segment.module.register_forward_pre_hook(before))
        handles.append(segment.module.register_forward_hook(after, with_kwargs=True))
    try:
        model(*batch)
    finally:
        for handle in handles:
            handle.remove()
    chained = [False]
    for i in range(1, len(segments)):
        if i not in seen or i - 1 not in seen:
            raise CompressionError(f"segment {segments[i].name!r} is not reached by the model")
        (call, out), (following, _) = seen[i - 1], seen[i]
        rest_before = [*call.args[1:], *call.kwargs.values()]
        rest_after = [*following.args[1:], *following.kwargs.values()]
        chained.append(
            bool(following.args)
            and following.args[0] is _first(out)
            and entered[i] == left[i - 1]
            and call.kwargs.keys() == following.kwargs.keys()
            and len(rest_before) == len(rest_after)
            and all(a is b for a, b in zip(rest_before, rest_after, strict=True))
        )
    return _Flow(chained, overwrites)


def _writes(args: tuple[Any, ...]) -> int:
    """How often the first argument has been written to; 0 where it is no tensor."""
    return args[0]._version if args and isinstance(args[0], Tensor) else 0


def _run(segment: SegmentLike, call: _Call, overwrites: bool) -> Any:
    """A segment on what it was called with, which stays as it is."""
    args = call.args
    if overwrites:
        args = (args[0].clone(), *args[1:])
    return segment.module(*args, **call.kwargs)


@torch.no_grad()
def walk(
    model: nn.Module,
    segments: Sequence[SegmentLike],
    calibration: Callable[[], Iterable[Batch]],
    wanted: Collection[str],
    visit: Visit,
    *,
    rows_per_column: float | None = None,
    progress: Progress | None = None,
    begin: int = 0,
    finished: Callable[[int], None] | None = None,
) -> None:
    """Visit every wanted layer with its Hessian, each segment after all before it were visited.

    Args:
        model: called as ``model(*batch)``; in eval mode, changed in place by ``visit``.
        segments: in execution order.
        calibration: gives the same batches each time it is called; batches without padding.
        wanted: qualified layer names.
        visit: called with (name, layer, accumulator); may write the layer's weights.
        rows_per_column: inputs a layer's Hessian takes in all, as a multiple of its size; evenly
            thinned above (neighbouring positions of an image say nearly the same). None: all.
        progress: called with (done, total, name).
        begin: segments before this one were visited by an earlier walk, and are passed through.
        finished: called with a segment's position once its wanted layers were visited.

    Raises:
        CompressionError: when a wanted layer lies in no segment or is never run.
    """
    missing = set(wanted) - {n for s in segments for n in layers_of(s, wanted)}
    if missing:
        raise CompressionError(f"layer {sorted(missing)[0]!r} lies in no segment of the model")
    first_batch = next(iter(calibration()), None)
    if first_batch is None:
        raise CompressionError("calibration gives no batch: at least one example is needed")
    # of two examples: every segment's tensors are held at once here, which must not cost memory
    flow = _flow(model, segments, tuple(part[:2] for part in first_batch))
    chained = flow.chained
    needed = [bool(layers_of(s, wanted)) for s in segments]
    last = max((i for i, n in enumerate(needed) if n), default=-1)

    calls: list[_Call] = []
    for i, segment in enumerate(segments[: last + 1]):
        if not (chained[i] and calls):
            # something lies between: run the compressed prefix again, up to this segment
            calls = []
            if needed[i] or chained[i + 1 : i + 2] == [True]:
                calls = [_capture(model, segment.module, batch) for batch in calibration()]
        if needed[i] and i >= begin:
            _visit_segment(segment, calls, wanted, visit, rows_per_column, flow.overwrites[i])
            if finished is not None:
                finished(i)
        if progress is not None:
            progress(i + 1, last + 1, segment.name)
        if i < last and chained[i + 1] and calls:
            for call in calls:  # outputs of the compressed segment become the next one's inputs
                out = _first(_run(segment, call, flow.overwrites[i]))
                call.args = (out, *call.args[1:])
        else:
            calls = []


def _rows_a_batch(layer: Layer, rows_per_column: float | None, batches: int) -> int | None:
    if rows_per_column is None:
        return None
    columns = matrix_of(layer).shape[-1]
    return max(1, math.ceil(max(_FEWEST_ROWS, rows_per_column * columns) / batches))


def _visit_segment(
    segment: SegmentLike,
    calls: Sequence[_Call],
    wanted: Collection[str],
    visit: Visit,
    rows_per_column: float | None,
    overwrites: bool,
) -> None:
    layers = layers_of(segment, wanted)
    accumulators = {
        name: HessianAccumulator(layer, max_rows=_rows_a_batch(layer, rows_per_column, len(calls)))
        for name, layer in layers.items()
    }
    handles = []
    for name, layer in layers.items():

        def hook(_: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            accumulators[name].add(args[0])

        handles.append(layer.register_forward_pre_hook(hook))
    try:
        for call in calls:
            _run(segment, call, overwrites)
    finally:
        for handle in handles:
            handle.remove()
    for name, layer in layers.items():
        if accumulators[name].samples == 0:
            raise CompressionError(f"layer {name!r} is never run by its segment; keep it dense")
        visit(name, layer, accumulators.pop(name))  # freed as soon as it is solved
