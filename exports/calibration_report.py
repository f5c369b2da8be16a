"""How many calibration samples are enough: the INT8 graph's divergence as their number grows.

The activations are streamed once. Each time that 8, 16, 32, ... examples have passed, the ranges
of that moment are written into an INT8 file, which is compared with the float graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from exports.calibrate import Progress, Rule, needed_tensors, observing, range_of
from exports.divergence import Bench, Feed, Quantize
from exports.grids import Activation, WeightGrid
from exports.onnxfile import GraphError
from exports.quantize import quantize_qdq

Ranges = dict[str, tuple[float, float]]
_FIRST = 8


@dataclass(frozen=True)
class CalibrationRow:
    """What a number of calibration samples gives.

    Attributes:
        samples: examples that set the ranges.
        kl, agreement: of the INT8 graph to the float graph on the evaluation examples.
        moved: mean over activations of how much of the final range's width the range still lacks
            or exceeds; 0 for the last row.
    """

    samples: int
    kl: float
    agreement: float
    moved: float

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain types."""
        return asdict(self)


def calibration_report(
    fp32: Path,
    *,
    weights: Mapping[str, WeightGrid],
    feeds: Sequence[Feed],
    activation: Activation,
    rule: Rule = "minmax",
    percentile: float = 99.99,
    evaluate: Sequence[Feed] | None = None,
    exclude: Iterable[str] = (),
    sizes: Sequence[int] | None = None,
    quantize: Quantize = quantize_qdq,
    reference: Path | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> list[CalibrationRow]:
    """Measure the INT8 graph at growing numbers of calibration samples.

    Args:
        fp32: the FP32 file, its weights on the grids.
        weights: grids by layer name (found by their numbers) or initializer name.
        feeds: shots in the order in which they are to count: shuffled, so that the first few are
            of several classes.
        activation: 'uint8' or 'int8'.
        rule, percentile: see `exports.calibrate.calibrate`.
        evaluate: examples to compare on, all of `feeds` by default (those that were not used
            for the ranges of a row are then held out from it).
        exclude: layers left float.
        sizes: numbers of samples; 8, 16, 32, ... and all of them by default.
        quantize: writes the INT8 file; see `exports.divergence.Quantize`.
        reference: the graph whose logits count as right; `fp32` by default.
        threads: of the sessions.
        progress: called with (done, total, note).

    Raises:
        GraphError: no shots, or a size beyond their number.
    """
    total = sum(_rows(feed) for feed in feeds)
    wanted = sorted(set(default_sizes(total) if sizes is None else sizes))
    if not wanted or wanted[0] < 1 or wanted[-1] > total:
        raise GraphError(f"calibration sizes {wanted}: there are {total} samples")
    with TemporaryDirectory() as folder:
        bench = Bench(
            fp32,
            Path(folder),
            weights=weights,
            ranges={},
            feeds=feeds if evaluate is None else evaluate,
            activation=activation,
            quantize=quantize,
            reference=reference,
            threads=threads,
        )
        tensors = needed_tensors(fp32, bench.weights)
        symmetric = activation == "int8"
        snapshots: list[Ranges] = []
        parts = cut_at(feeds, wanted)
        for seen, size in zip(
            observing(fp32, (feed for feed, _ in parts), tensors, threads=threads),
            [size for _, size in parts],
            strict=True,
        ):
            if size is None:
                continue
            snapshots.append(
                {
                    name: range_of(histogram, rule, percentile=percentile, symmetric=symmetric)
                    for name, histogram in seen.items()
                }
            )
        rows = []
        for size, ranges in zip(wanted, snapshots, strict=True):
            found = bench.measure(exclude, ranges=ranges)
            moved = _moved(ranges, snapshots[-1])
            rows.append(CalibrationRow(size, found.kl, found.agreement, moved))
            if progress is not None:
                progress(len(rows), len(wanted), f"{size} calibration samples")
    return rows


def default_sizes(total: int) -> list[int]:
    """Return 8, 16, 32, ... below `total`, and `total`."""
    sizes = []
    size = _FIRST
    while size < total:
        sizes.append(size)
        size *= 2
    return [*sizes, total] if total else []


def cut_at(
    feeds: Iterable[Feed], sizes: Sequence[int]
) -> list[tuple[dict[str, np.ndarray], int | None]]:
    """Split batches so that one ends wherever a size is reached, and stop at the last size.

    Returns:
        (part, the size that is reached with it or None), in order.
    """
    return list(_parts(feeds, list(sizes)))


def _parts(
    feeds: Iterable[Feed], sizes: list[int]
) -> Iterator[tuple[dict[str, np.ndarray], int | None]]:
    done = 0
    for feed in feeds:
        start, rows = 0, _rows(feed)
        while start < rows and sizes:
            stop = min(rows, start + sizes[0] - done)
            done += stop - start
            reached = sizes.pop(0) if done == sizes[0] else None
            yield {name: values[start:stop] for name, values in feed.items()}, reached
            start = stop


def _rows(feed: Feed) -> int:
    return len(next(iter(feed.values())))


def _moved(ranges: Ranges, final: Ranges) -> float:
    """Return the mean distance of ranges from the final ones, as a share of those."""
    shares = []
    for name, (low, high) in final.items():
        width = max(high - low, float(np.finfo(np.float32).tiny))
        shares.append((abs(ranges[name][0] - low) + abs(ranges[name][1] - high)) / width)
    return float(np.mean(shares))
