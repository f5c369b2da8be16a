"""How far a graph's INT8 form is from the graph, written and measured over and over.

kl         mean over examples of KL(softmax(float) || softmax(int8)), in nats
agreement  share of examples with the same label
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from exports.graph import match_layers
from exports.grids import Activation, QuantizationError, WeightGrid
from exports.onnxfile import layers, load_model
from exports.quantize import quantize_qdq
from exports.runtime import run_logits, session

Feed = Mapping[str, np.ndarray]


class Quantize(Protocol):
    """Writes the INT8 form of `fp32`; `exports.quantize.quantize_qdq`, or a route built on it."""

    def __call__(
        self,
        fp32: Path,
        out: Path,
        *,
        weights: Mapping[str, WeightGrid],
        ranges: Mapping[str, tuple[float, float]],
        activation: Activation,
        exclude: Iterable[str],
    ) -> None: ...


@dataclass(frozen=True)
class Divergence:
    """How far a graph's answers are from the float graph's."""

    kl: float
    agreement: float
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain types."""
        return asdict(self)

    def holds(self, max_kl: float | None, min_agreement: float | None) -> bool:
        """Whether both bounds hold (None: not asked); NaN holds none."""
        near = max_kl is None or self.kl <= max_kl
        return near and (min_agreement is None or self.agreement >= min_agreement)


def divergence(exact: np.ndarray, logits: np.ndarray) -> Divergence:
    """Return how far `logits` (N, K) are from the `exact` ones (N, K)."""
    if exact.shape != logits.shape or exact.ndim != 2 or len(exact) == 0:
        raise ValueError(f"divergence: logits of shape {exact.shape} and {logits.shape}")
    p, q = _log_softmax(exact), _log_softmax(logits)
    kl = float((np.exp(p) * (p - q)).sum(axis=1).mean())
    agreement = float((exact.argmax(axis=1) == logits.argmax(axis=1)).mean())
    return Divergence(kl, agreement, len(exact))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


class Bench:
    """Writes INT8 forms of one graph in a scratch folder and measures them on the shots."""

    def __init__(
        self,
        fp32: Path,
        folder: Path,
        *,
        weights: Mapping[str, WeightGrid],
        ranges: Mapping[str, tuple[float, float]],
        feeds: Sequence[Feed],
        activation: Activation,
        quantize: Quantize = quantize_qdq,
        reference: Path | None = None,
        threads: int = 1,
    ) -> None:
        """Run the reference once; `weights` names become the graph's own here, looked up once."""
        self.fp32, self.out, self.activation = fp32, folder / "int8.onnx", activation
        self.ranges, self.feeds, self.quantize, self.threads = ranges, feeds, quantize, threads
        own = {layer.weight for layer in layers(load_model(fp32))}
        named = match_layers(fp32, {n: g.values() for n, g in weights.items() if n not in own})
        self.initializer = {name: named.get(name, name) for name in weights}
        self.weights = {self.initializer[name]: grid for name, grid in weights.items()}
        self.exact = run_logits(session(reference or fp32, threads), feeds)

    def names(self) -> list[str]:
        """The layers' names as the caller knows them, in graph order, each weight once."""
        by_weight = {weight: name for name, weight in reversed(self.initializer.items())}
        order = dict.fromkeys(layer.weight for layer in layers(load_model(self.fp32)))
        return [by_weight[weight] for weight in order if weight in by_weight]

    def measure(
        self,
        exclude: Iterable[str],
        *,
        samples: int | None = None,
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> Divergence:
        """Quantize all but `exclude` and compare on the first `samples` examples (None: all)."""
        left_out = {self.initializer[name] for name in exclude}
        if left_out >= set(self.weights):
            raise QuantizationError("exclude: names every layer; nothing would be quantized")
        self.quantize(
            self.fp32,
            self.out,
            weights=self.weights,
            ranges=self.ranges if ranges is None else ranges,
            activation=self.activation,
            exclude=sorted(left_out),
        )
        feeds = self.feeds if samples is None else first_rows(self.feeds, samples)
        logits = run_logits(session(self.out, self.threads), feeds)
        return divergence(self.exact[: len(logits)], logits)


def first_rows(feeds: Iterable[Feed], samples: int) -> list[dict[str, np.ndarray]]:
    """Return the feeds' first `samples` rows, batch by batch."""
    kept: list[dict[str, np.ndarray]] = []
    for feed in feeds:
        if samples <= 0:
            break
        kept.append({name: values[:samples] for name, values in feed.items()})
        samples -= len(next(iter(kept[-1].values())))
    return kept
