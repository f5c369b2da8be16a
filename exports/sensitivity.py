"""Which layers INT8 hurts, measured on the shots, and the fewest to leave float.

Everything is compared with the FP32 graph whose weights are on their grids already: what is left
to lose is the rounding of activations. Attention's products, softmax and normalisations are never
quantized (`exports.quantize`), so a layer here is a Linear or a Conv.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from exports.calibrate import Progress
from exports.divergence import Bench, Divergence, Feed, Quantize
from exports.grids import Activation, WeightGrid
from exports.quantize import quantize_qdq

Mode = Literal["alone", "without"]


@dataclass(frozen=True)
class LayerRow:
    """One layer: the divergence of the graph that its `mode` names, and whether it stays float."""

    layer: str
    kl: float
    agreement: float
    kept: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain types."""
        return asdict(self)


@dataclass(frozen=True)
class FloatChoice:
    """The layers to leave float, and what that does to the whole graph on all shots.

    Attributes:
        layers: names to pass as `exclude`; empty where the whole graph holds the bound.
        rows: one a layer, most harmful first; empty where nothing had to be measured. Their
            divergence is the whole graph's with that one layer float.
        before, after: of the whole INT8 graph, without and with `layers` float.
        holds: whether `after` is within the bound; if not, even the allowed share is too little.
    """

    layers: tuple[str, ...]
    rows: tuple[LayerRow, ...]
    before: Divergence
    after: Divergence
    holds: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain types."""
        return asdict(self)


def layer_sensitivity(
    fp32: Path,
    *,
    weights: Mapping[str, WeightGrid],
    ranges: Mapping[str, tuple[float, float]],
    feeds: Sequence[Feed],
    activation: Activation,
    mode: Mode = "alone",
    samples: int = 64,
    quantize: Quantize = quantize_qdq,
    reference: Path | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> list[LayerRow]:
    """Measure every layer by itself, most harmful first.

    Args:
        fp32: the FP32 file, its weights on the grids.
        weights: grids by layer name (found by their numbers) or initializer name.
        ranges: of the activations, from `calibrate`.
        feeds: shots, class-balanced from the start: the first `samples` of them are used.
        activation: 'uint8' or 'int8'.
        mode: 'alone' quantizes that layer only; 'without' quantizes all others.
        samples: examples to measure on.
        quantize: writes the INT8 file; see `Quantize`.
        reference: the graph whose logits count as right; `fp32` by default.
        threads: of the sessions.
        progress: called with (done, total, layer).
    """
    with TemporaryDirectory() as folder:
        bench = Bench(
            fp32,
            Path(folder),
            weights=weights,
            ranges=ranges,
            feeds=feeds,
            activation=activation,
            quantize=quantize,
            reference=reference,
            threads=threads,
        )
        return _rows(bench, mode, samples, progress)


def _rows(bench: Bench, mode: Mode, samples: int, progress: Progress | None) -> list[LayerRow]:
    """Measure one graph a layer; the most harmful layer comes first."""
    names, rows = bench.names(), []
    for index, name in enumerate(names):
        others = [other for other in names if other != name]
        found = bench.measure(others if mode == "alone" else [name], samples=samples)
        rows.append(LayerRow(name, found.kl, found.agreement))
        if progress is not None:
            progress(index + 1, len(names), name)
    return sorted(rows, key=lambda row: row.kl, reverse=mode == "alone")


def find_float(
    fp32: Path,
    *,
    weights: Mapping[str, WeightGrid],
    ranges: Mapping[str, tuple[float, float]],
    feeds: Sequence[Feed],
    activation: Activation,
    max_kl: float | None = None,
    min_agreement: float | None = None,
    max_share: float = 0.2,
    samples: int = 64,
    quantize: Quantize = quantize_qdq,
    reference: Path | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> FloatChoice:
    """Leave the fewest layers float with which the whole INT8 graph holds the bound on the shots.

    The whole graph is measured first, and where it holds the bound that is all. Otherwise every
    layer's gain (fall of KL where it alone is float) is measured on `samples` examples. Layers
    are then taken greedily: the one that seems best is measured again beside those taken so far
    and taken if it still beats the others' last known gain (lazy greedy, Minoux 1978), and the
    whole graph is checked on all shots after each. At the end a layer that later ones made needless
    goes back to INT8.

    Args:
        max_kl: bound on the mean KL in nats; None for none.
        min_agreement: bound on the share of equal labels; None for none.
        max_share: of the layers that may stay float, at most (rounded down).
        Others: see `layer_sensitivity`.

    Raises:
        ValueError: no bound, or a share outside [0, 1).
    """
    if (max_kl is None and min_agreement is None) or not 0 <= max_share < 1:
        raise ValueError(
            f"find_float: max_kl {max_kl}, min_agreement {min_agreement}, max_share {max_share}; "
            "give a bound and a share in [0, 1)"
        )
    with TemporaryDirectory() as folder:
        bench = Bench(
            fp32,
            Path(folder),
            weights=weights,
            ranges=ranges,
            feeds=feeds,
            activation=activation,
            quantize=quantize,
            reference=reference,
            threads=threads,
        )
        before = bench.measure(())
        room = int(max_share * len(bench.weights))
        if room == 0 or before.holds(max_kl, min_agreement):
            return FloatChoice((), (), before, before, before.holds(max_kl, min_agreement))
        rows = _rows(bench, "without", samples, progress)
        kl = bench.measure((), samples=samples).kl
        queue = [(row.kl - kl, row.layer) for row in rows]  # minus the gain: smallest first
        heapq.heapify(queue)
        taken: list[str] = []
        after = before
        known = {row.layer: row.kl for row in rows}  # the first gains are exact as they are
        while queue and len(taken) < room and not after.holds(max_kl, min_agreement):
            name, lower = _next(bench, queue, taken, known, kl, samples)
            if not lower < kl:  # no layer helps any more
                break
            taken.append(name)
            kl, known = lower, {}
            after = bench.measure(taken)
        for name in taken[:-1] if after.holds(max_kl, min_agreement) else []:
            fewer = [other for other in taken if other != name]
            found = bench.measure(fewer)
            if found.holds(max_kl, min_agreement):
                taken, after = fewer, found
    marked = tuple(LayerRow(r.layer, r.kl, r.agreement, r.layer in taken) for r in rows)
    return FloatChoice(tuple(taken), marked, before, after, after.holds(max_kl, min_agreement))


def _next(
    bench: Bench,
    queue: list[tuple[float, str]],
    taken: Sequence[str],
    known: dict[str, float],
    kl: float,
    samples: int,
) -> tuple[str, float]:
    """Take the layer with the largest gain beside `taken` off the queue; return the KL with it.

    `known` holds the KL of layers measured beside exactly these; `kl` is that of `taken` alone.
    """
    while True:
        _, name = heapq.heappop(queue)
        if name in known:
            return name, known[name]
        known[name] = bench.measure([*taken, name], samples=samples).kl
        heapq.heappush(queue, (known[name] - kl, name))
