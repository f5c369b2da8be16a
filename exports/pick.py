"""Choose among INT8 files: time them interleaved, keep the fastest that stays near FP32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from exports.forms import Route, Stem
from exports.grids import Activation, QuantizationError
from exports.latency import interleaved
from exports.runtime import SessionError, run_logits, session

Feed = Mapping[str, np.ndarray]
_SCREENED = 3.0  # times the fastest in a short run: out of the long one
_SHORT = 5
_NAN = float("nan")


@dataclass(frozen=True)
class Candidate:
    """One form of the graph.

    Attributes:
        route: 'static', 'fused' or 'dynamic'.
        activation: 'uint8' or 'int8'.
        stem: whether the first convolution is an 8-bit one or left float.
        milliseconds: median time of one call; NaN where it was not timed.
        gap: largest difference of a logit from the FP32 graph's; NaN where not compared.
        agreement: share of the samples that get the FP32 graph's label.
        rejected: why it cannot be chosen, or "".
    """

    route: Route
    activation: Activation
    stem: Stem = "int8"
    milliseconds: float = _NAN
    gap: float = _NAN
    agreement: float = _NAN
    rejected: str = ""

    @property
    def name(self) -> str:
        """The candidate in one word."""
        return f"{self.route}-{self.activation}{'-float-stem' if self.stem == 'float' else ''}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and texts; what was not measured is None."""
        return {
            "route": self.route,
            "activation": self.activation,
            "stem": self.stem,
            "ms": _plain(self.milliseconds),
            "gap": _plain(self.gap),
            "agreement": _plain(self.agreement),
            "rejected": self.rejected,
        }


@dataclass(frozen=True)
class RouteChoice:
    """What was chosen, and among what.

    Attributes:
        chosen: the fastest candidate that holds the guard.
        candidates: all of them, the chosen one too, fastest first, rejected ones last.
        fp32_ms: the FP32 graph in the same rounds as the chosen one.
    """

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    fp32_ms: float

    def to_dict(self) -> dict[str, Any]:
        """Return the choice for a report: the chosen one's numbers, and a row a candidate."""
        tried = [item.to_dict() for item in self.candidates]
        return {**self.chosen.to_dict(), "fp32_ms": self.fp32_ms, "tried": tried}


def _plain(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None


def pick_route(
    files: Mapping[Candidate, Path],
    reference: Path,
    feed: Feed,
    *,
    samples: Sequence[Feed] = (),
    slack: float = 0.01,
    widest: float = 2.0,
    tie: float = 0.02,
    threads: int = 1,
    warmup: int = 5,
    repeats: int = 40,
    seed: int = 0,
    clock: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> RouteChoice:
    """Choose the fastest file that holds the guard, timed interleaved in this process.

    The guard: labels agree with the reference's on at most `slack` fewer of the samples than the
    best candidate's do, and logits are at most `widest` times as far off as the closest one's.

    Args:
        files: the candidates' files, the preferred ones first.
        reference: the FP32 file.
        feed: the input to time.
        samples: inputs to compare on; `feed` if none.
        slack: share of the samples.
        widest: factor of the largest difference of a logit.
        tie: share of the fastest one's time within which an earlier file is preferred.
        threads: of the sessions.
        warmup: untimed calls.
        repeats: timed rounds.
        seed: of the order within a round.
        clock: held while files are timed, so that nothing else on this host times meanwhile.

    Raises:
        QuantizationError: no file runs and gives finite logits.
    """
    original = session(reference, threads)
    sessions: dict[Candidate, ort.InferenceSession] = {}
    rows: list[Candidate] = []
    for item, path in files.items():
        try:
            opened = session(path, threads)
            # one that computes nothing of use may be the fastest: it must not screen out others
            _require_finite(_logits(opened, feed))
        except SessionError as problem:
            rows.append(replace(item, rejected=str(problem)))
        else:
            sessions[item] = opened
    if not sessions:
        raise _none_left(rows)
    named = {item.name: opened for item, opened in sessions.items()}
    with clock():
        short = interleaved(named, feed, warmup=1, repeats=_SHORT, seed=seed).median_ms
    limit = _SCREENED * min(short.values())
    expected = run_logits(original, samples or [feed])
    compared: list[Candidate] = []
    for item, opened in sessions.items():
        if short[item.name] > limit:
            slow = replace(item, milliseconds=short[item.name], rejected="slower")
            rows.append(slow)
            continue
        try:
            got = _logits(opened, samples or [feed])
            if got.shape != expected.shape:
                raise SessionError(f"its logits have shape {got.shape}, expected {expected.shape}")
            _require_finite(got - expected)
        except SessionError as problem:
            rows.append(replace(item, rejected=str(problem)))
            continue
        agreement = float((got.argmax(-1) == expected.argmax(-1)).mean())
        gap = float(np.abs(got - expected).max())
        compared.append(replace(item, gap=gap, agreement=agreement))
    if not compared:
        raise _none_left(rows)
    held, missed = _guard(compared, slack, widest)
    last = {**{row.name: named[row.name] for row in held}, "float32": original}
    with clock():
        timed = interleaved(last, feed, warmup=warmup, repeats=repeats, seed=seed).median_ms
    held = [replace(row, milliseconds=timed[row.name]) for row in held]
    limit = (1 + tie) * min(row.milliseconds for row in held)
    chosen = next(row for row in held if row.milliseconds <= limit)
    return RouteChoice(chosen, in_order([*held, *missed, *rows]), timed["float32"])


def _logits(opened: ort.InferenceSession, feeds: Feed | Sequence[Feed]) -> np.ndarray:
    """Return a candidate's logits; raises `SessionError` where it loads but does not run."""
    try:
        return run_logits(opened, feeds)
    except Exception as problem:  # pybind raises one type per status code
        lines = str(problem).splitlines() or [type(problem).__name__]
        raise SessionError(f"ONNX Runtime does not run it: {lines[0]}") from None


def _require_finite(logits: np.ndarray) -> None:
    if not np.isfinite(logits).all():
        raise SessionError("its logits are not finite")


def _none_left(rows: Sequence[Candidate]) -> QuantizationError:
    reasons = [row.rejected for row in rows if row.rejected != "slower"]
    return QuantizationError(f"no INT8 route works: {reasons[0] if reasons else 'no file'}")


def _guard(
    rows: list[Candidate], slack: float, widest: float
) -> tuple[list[Candidate], list[Candidate]]:
    """Return the candidates that hold the guard, at least one, and the others with the reason.

    Args:
        rows: of finite gaps, one or more.
        slack: see `pick_route`.
        widest: see `pick_route`.
    """
    labels = max(row.agreement for row in rows) - slack
    reach = widest * min(row.gap for row in rows if row.agreement >= labels)
    held, missed = [], []
    for row in rows:
        if row.agreement >= labels and row.gap <= reach:
            held.append(row)
        else:
            note = f"labels agree on {row.agreement:.3f}, logits are off by {row.gap:.3g}"
            missed.append(replace(row, rejected=note))
    return held, missed


def in_order(rows: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Return candidates fastest first, rejected ones last."""
    return tuple(sorted(rows, key=lambda row: (bool(row.rejected), row.milliseconds)))
