"""Calibrate activation ranges on an FP32 graph, batch by batch, in bounded memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto

from exports.onnxfile import GraphError, layers, load_model
from exports.placement import place
from exports.runtime import session

Rule = Literal["minmax", "mse", "percentile"]
Progress = Callable[[int, int, str], None]
RULES: tuple[Rule, ...] = ("minmax", "mse", "percentile")
_BINS = 8192  # even; at least 2048 of them cover the larger side, 8 for each of the 256 levels
_LEVELS = 255
_SHRINK = np.linspace(1.0, 0.2, 41)  # candidate fractions of the observed extreme
_ROWS = 8  # rows of one run: the activations of these are in memory at once


@dataclass
class Histogram:
    """Counts of a stream of numbers over [-reach, reach]; the reach doubles when outgrown."""

    low: float = np.inf
    high: float = -np.inf
    reach: float = 0.0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(_BINS, np.float64))

    def add(self, values: np.ndarray) -> None:
        """Count one more array.

        Raises:
            GraphError: the array holds NaN or infinities.
        """
        flat = values.reshape(-1)
        if flat.size == 0:
            return
        low, high = float(flat.min()), float(flat.max())
        if not np.isfinite([low, high]).all():
            raise GraphError("an activation is not finite; the model overflows on this input")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._grow(max(-low, high, 1e-12))
        index = ((flat + np.float32(self.reach)) * np.float32(_BINS / (2 * self.reach))).astype(
            np.int32
        )
        self.counts += np.bincount(np.clip(index, 0, _BINS - 1, out=index), minlength=_BINS)

    def _grow(self, needed: float) -> None:
        """Double the reach until it covers `needed`, merging neighbouring bins."""
        if self.reach == 0.0:
            self.reach = needed
        while self.reach < needed:
            merged = self.counts.reshape(-1, 2).sum(axis=1)  # (bins / 2,): the middle of the new
            self.counts = np.pad(merged, _BINS // 4)
            self.reach *= 2

    @property
    def centers(self) -> np.ndarray:
        """The bins' middles, kept inside what was observed."""
        step = 2 * self.reach / _BINS
        middles = (np.arange(_BINS) + 0.5) * step - self.reach
        return np.clip(middles, self.low, self.high)


def range_of(
    histogram: Histogram, rule: Rule, *, percentile: float = 99.99, symmetric: bool = False
) -> tuple[float, float]:
    """Choose the range (low <= 0 <= high) that an 8-bit grid should span.

    Args:
        histogram: what was observed.
        rule: 'minmax' all of it; 'percentile' all but the outer (100 - percentile) per cent, half
            on each side that has numbers; 'mse' the range of least expected squared error.
        percentile: per cent of the numbers that stay inside, for 'percentile'.
        symmetric: whether the grid is symmetric about zero ('mse' only minimises for that then).

    Raises:
        ValueError: an unknown rule, or a percentile outside (50, 100].
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if rule == "minmax":
        return low, high
    if rule == "percentile":
        if not 50 < percentile <= 100:
            raise ValueError(f"percentile: {percentile} is not in (50, 100]")
        sides = 2 if low < 0 < high else 1
        tail = (1 - percentile / 100) / sides * histogram.counts.sum()
        below = np.cumsum(histogram.counts)
        first = int(np.searchsorted(below, tail, side="right"))
        last = int(np.searchsorted(below, below[-1] - tail, side="left"))
        centers = histogram.centers
        return (
            max(low, min(float(centers[min(first, _BINS - 1)]), 0.0)),
            min(high, max(float(centers[min(last, _BINS - 1)]), 0.0)),
        )
    if rule == "mse":
        return _least_error(histogram, low, high, symmetric)
    raise ValueError(f"rule: {rule!r} is not one of {', '.join(RULES)}")


def _least_error(
    histogram: Histogram, low: float, high: float, symmetric: bool
) -> tuple[float, float]:
    """Shrink both ends together, then each alone, to the least quantization error."""
    used = histogram.counts > 0
    values, counts = histogram.centers[used], histogram.counts[used]
    if values.size == 0 or low == high:
        return low, high

    def error(candidate: tuple[float, float]) -> float:
        lo, hi = candidate
        if symmetric and lo < 0:
            lo = min(lo, -hi)
            hi = -lo
        step = (hi - lo) / _LEVELS
        zero = np.rint(-lo / step)
        integers = np.clip(np.rint(values / step) + zero, 0, _LEVELS)
        return float(counts @ np.square((integers - zero) * step - values))

    best = min(((low * f, high * f) for f in _SHRINK), key=error)
    if low < 0 < high and not symmetric:
        best = min(((low * f, best[1]) for f in _SHRINK), key=error)
        best = min(((best[0], high * f) for f in _SHRINK), key=error)
    return best


def needed_tensors(path: Path, weights: Iterable[str] | None = None) -> list[str]:
    """Return the activations whose range the quantizer asks for, whatever placement it takes.

    Args:
        path: the FP32 file.
        weights: initializers of the layers to quantize; every Linear and Conv by default.
    """
    model = load_model(path)
    names = {layer.weight for layer in layers(model)} if weights is None else set(weights)
    both = (place(model, names, "float"), place(model, names, "int8"))
    ranged = (name for plan in both for name in (*plan.ranged, *plan.same_grid))
    return list(dict.fromkeys(ranged))  # pooled ones too: needed where the layer before stays float


def observe(
    path: Path,
    feeds: Iterable[Mapping[str, np.ndarray]],
    tensors: Sequence[str],
    *,
    threads: int = 1,
    progress: Progress | None = None,
    total: int = 0,
) -> dict[str, Histogram]:
    """Run the batches through the graph and count every named activation.

    Memory holds one histogram a tensor and the activations of a few rows.

    Raises:
        GraphError: no batch, an unknown tensor, or an activation that is not finite.
    """
    seen: dict[str, Histogram] | None = None
    for done, grown in enumerate(observing(path, feeds, tensors, threads=threads), start=1):
        seen = grown
        if progress is not None:
            progress(done, total, "calibrating activations")
    if seen is None:
        raise GraphError("calibration: no batch was given")
    return seen


def observing(
    path: Path,
    feeds: Iterable[Mapping[str, np.ndarray]],
    tensors: Sequence[str],
    *,
    threads: int = 1,
) -> Iterator[dict[str, Histogram]]:
    """Do `observe`, handing over the histograms after every batch; they go on growing."""
    model = load_model(path)
    made = {name for node in model.graph.node for name in node.output}
    taken = {value.name for value in model.graph.input}
    unknown = [name for name in tensors if name not in made | taken]
    if unknown:
        raise GraphError(f"tensor {unknown[0]!r} is not in {path}")
    outputs = [name for name in dict.fromkeys(tensors) if name in made]
    existing = {value.name for value in model.graph.output}
    for name in outputs:
        if name not in existing:
            model.graph.output.append(
                onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            )
    seen = {name: Histogram() for name in tensors}
    with tempfile.TemporaryDirectory() as folder:
        spy_path = Path(folder) / "spy.onnx"
        onnx.save(model, str(spy_path))
        spy = session(spy_path, threads)
        for feed in feeds:
            rows = len(next(iter(feed.values())))
            for start in range(0, rows, _ROWS):
                part = {name: values[start : start + _ROWS] for name, values in feed.items()}
                # an empty list would ask for every output: the graph's inputs may be all it takes
                found = spy.run(outputs, part) if outputs else []
                results = dict(zip(outputs, found, strict=True))
                for name in seen:
                    _count(seen[name], name, results.get(name, part.get(name)))
            yield seen


def _count(histogram: Histogram, name: str, values: np.ndarray | None) -> None:
    """Add one activation to its histogram, naming it if it is not finite."""
    if values is None:
        raise GraphError(f"tensor {name!r} was not produced")
    try:
        histogram.add(values)
    except GraphError as problem:
        raise GraphError(f"tensor {name!r}: {problem}") from None


def calibrate(
    path: Path,
    feeds: Iterable[Mapping[str, np.ndarray]],
    *,
    rule: Rule = "minmax",
    percentile: float = 99.99,
    activation: Literal["uint8", "int8"] = "uint8",
    weights: Iterable[str] | None = None,
    threads: int = 1,
    progress: Progress | None = None,
    total: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return the range of every activation that `quantize_qdq` needs.

    Args:
        path: the FP32 file.
        feeds: batches by input name; class-balanced, and without padding tokens.
        rule: 'minmax', 'mse' or 'percentile'; see `range_of`.
        percentile: for the rule of that name.
        activation: the type that the ranges are for.
        weights: initializers of the layers to quantize; every Linear and Conv by default.
        threads: of the calibration session.
        progress: called with (done, total, note) after each batch.
        total: number of batches, for `progress`.
    """
    if rule not in RULES:
        raise ValueError(f"rule: {rule!r} is not one of {', '.join(RULES)}")
    tensors = needed_tensors(path, weights)
    seen = observe(path, feeds, tensors, threads=threads, progress=progress, total=total)
    symmetric = activation == "int8"
    return {
        name: range_of(histogram, rule, percentile=percentile, symmetric=symmetric)
        for name, histogram in seen.items()
    }
