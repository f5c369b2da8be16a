"""Compare models' speed in one process, interleaved, with an interval on the ratio."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnxruntime as ort


@dataclass(frozen=True)
class Timings:
    """One row of wall times (milliseconds) a model, one column a round."""

    rounds_ms: dict[str, np.ndarray]
    seed: int = 0
    resamples: int = 2000
    median_ms: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        medians = {name: float(np.median(times)) for name, times in self.rounds_ms.items()}
        object.__setattr__(self, "median_ms", medians)

    def spread(self, name: str) -> float:
        """Return how unsteady a model's times were: their third quartile over their first decile.

        A machine of its own gives little above 1. On a busy one long calls are interrupted and
        short ones are not, which moves a ratio of medians without widening its interval.
        """
        first, third = np.quantile(self.rounds_ms[name], (0.10, 0.75))
        return float(third / first) if first > 0 else 1.0

    def ratio(self, a: str, b: str, confidence: float = 0.95) -> tuple[float, float, float]:
        """Return how many times faster `b` is than `a`: ratio of medians and its interval.

        Rounds are resampled in pairs, because a disturbance of the host meets both models of a
        round (percentile bootstrap, Efron and Tibshirani 1993), once one by one and once in
        circular blocks of 2 n^(1/3) neighbours, because disturbances last (Politis and Romano
        1992); the interval is the wider end of the two on either side. Single rounds take lasting
        disturbances for many short ones, and blocks of a few rounds are a little short where there
        are none. What drifts more slowly than the rounds last is in neither.
        """
        slow, fast = self.rounds_ms[a], self.rounds_ms[b]
        ratio, n = self.median_ms[a] / self.median_ms[b], len(slow)
        if n < 2 or (np.ptp(slow) == 0 and np.ptp(fast) == 0):
            return ratio, ratio, ratio
        tails, ends = [0.5 - confidence / 2, 0.5 + confidence / 2], []
        generator = np.random.default_rng(self.seed)
        for length in (1, min(n, math.ceil(2 * n ** (1 / 3)))):
            rows = _resampled(n, length, self.resamples, generator)
            ratios = np.median(slow[rows], axis=1) / np.median(fast[rows], axis=1)
            ends.append(np.quantile(ratios, tails))
        return ratio, float(min(low for low, _ in ends)), float(max(high for _, high in ends))


def _resampled(n: int, length: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return rows of n for every resample, (count, n): neighbours in blocks, in a circle."""
    starts = generator.integers(0, n, (count, -(-n // length), 1))
    return ((starts + np.arange(length)) % n).reshape(count, -1)[:, :n]


def interleaved(
    sessions: Mapping[str, ort.InferenceSession],
    feed: Mapping[str, np.ndarray] | Mapping[str, Mapping[str, np.ndarray]],
    *,
    warmup: int,
    repeats: int,
    seed: int,
) -> Timings:
    """Time every session on the same input, one call each a round, in shuffled order.

    Args:
        sessions: open sessions by name (one thread each for the headline number).
        feed: the input that all of them take, or one input a session by the session's name.
        warmup: untimed calls of each session.
        repeats: timed rounds.
        seed: seed of the order within a round.

    Raises:
        ValueError: no session or no repeats.
    """
    if not sessions or repeats < 1:
        raise ValueError(
            f"interleaved: {len(sessions)} sessions, {repeats} repeats; need 1 of each"
        )
    inputs = {name: _input_of(name, feed) for name in sessions}
    for name, open_session in sessions.items():
        for _ in range(warmup):
            open_session.run(None, inputs[name])
    order, shuffler = list(sessions), random.Random(seed)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(repeats):
        shuffler.shuffle(order)
        for name in order:
            start = time.perf_counter()
            sessions[name].run(None, inputs[name])
            times[name].append((time.perf_counter() - start) * 1e3)
    return Timings({name: np.asarray(values) for name, values in times.items()}, seed)


def _input_of(
    name: str, feed: Mapping[str, np.ndarray] | Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return one session's input from a shared feed or a feed a session."""
    own = feed.get(name)
    chosen = own if isinstance(own, Mapping) else feed
    return {key: np.asarray(value) for key, value in chosen.items()}
