"""What a report tells beside the verdict: McNemar, drops by class, calibration, draws of shots.

Discordant examples are those that one of the two models alone gets right: `lost` ones only the
teacher, `gained` ones only the specialist.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from exports.paired import paired_bounds, quantile
from exports.power import examples_to_settle

__all__ = [
    "calibration_error",
    "examples_to_settle",
    "holm",
    "mcnemar",
    "per_class_drops",
    "seeds_spread",
]

_RESAMPLES = 500
_CHUNK = 50  # resamples held at a time
_FEW_PAIRS = 2  # discordant pairs a draw, up to which a variance is no guide
_FEWEST_BINS, _MOST_BINS = 3, 15


def mcnemar(lost: int, gained: int) -> float:
    """Return the exact two-sided p-value of McNemar's test (Psychometrika 12, 1947).

    Were the models equally accurate, a discordant example would be lost or gained with even odds.

    Raises:
        ValueError: a count is negative.
    """
    if min(lost, gained) < 0:
        raise ValueError(f"mcnemar: {lost} lost and {gained} gained")
    if lost + gained == 0:
        return 1.0
    return float(stats.binomtest(lost, lost + gained, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm, Scandinavian J. of Statistics 6, 1979).

    Calling significant what is at most alpha errs anywhere among them with at most that chance.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, stepped)
    return [float(value) for value in adjusted]


def per_class_drops(
    labels: np.ndarray,
    teacher_right: np.ndarray,
    specialist_right: np.ndarray,
    classes: Sequence[str],
    confidence: float = 0.95,
) -> tuple[list[dict[str, Any]], str]:
    """Return each class's drop in accuracy, corrected for looking at many classes.

    Classes have no example in common, so their intervals err independently and Sidak's level
    (1 - alpha)^(1/m) makes all m of them hold at once (JASA 62, 1967). `p_adjusted` is McNemar's
    exact p-value after Holm; `worse` where it is at most alpha and the drop is above zero.

    Args:
        labels: true classes, (N,), as indices of `classes`.
        teacher_right, specialist_right: whether each answered right, (N,) each.
        classes: their names.
        confidence: that all intervals hold.

    Returns:
        (rows, method), a row a class in the classes' order; a class without test examples has
        None for all that would be measured.

    Raises:
        ValueError: shapes differ, or a label names no class.
    """
    labels = np.asarray(labels)
    teacher, specialist = np.asarray(teacher_right, bool), np.asarray(specialist_right, bool)
    if not labels.shape == teacher.shape == specialist.shape or labels.ndim != 1:
        shapes = labels.shape, teacher.shape, specialist.shape
        raise ValueError(f"per_class_drops: shapes {shapes}")
    if labels.size and not 0 <= labels.min() <= labels.max() < len(classes):
        raise ValueError(f"per_class_drops: labels up to {labels.max()}, {len(classes)} classes")
    seen = [at for at in range(len(classes)) if (labels == at).any()]
    level = confidence ** (1 / max(1, len(seen)))
    rows: list[dict[str, Any]] = []
    for at, name in enumerate(classes):
        mine = labels == at
        n = int(mine.sum())
        row: dict[str, Any] = {"class": name, "n": n}
        if not n:
            keys = ("teacher", "specialist", "drop", "drop_ci", "p_adjusted")
            rows.append({**row, **dict.fromkeys(keys), "worse": False})
            continue
        lost = int((mine & teacher & ~specialist).sum())
        gained = int((mine & ~teacher & specialist).sum())
        low, high, _ = paired_bounds(lost, gained, n, level)
        rows.append(
            {
                **row,
                "teacher": float(teacher[mine].mean()),
                "specialist": float(specialist[mine].mean()),
                "drop": (lost - gained) / n,
                "drop_ci": [low, high],
                "p_adjusted": mcnemar(lost, gained),
            }
        )
    for at, p in zip(seen, holm([rows[at]["p_adjusted"] for at in seen]), strict=True):
        worse = p <= 1 - confidence and rows[at]["drop"] > 0
        rows[at] |= {"p_adjusted": p, "worse": bool(worse)}
    method = (
        f"paired intervals at {level:.4%} each, so that all {len(seen)} hold with {confidence:.0%} "
        "(Sidak 1967); McNemar's exact p-values adjusted after Holm 1979"
    )
    return rows, method


def calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, confidence: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """Return the expected calibration error of the top answer, with its interval.

    Bins hold equally many examples (equal ones stay together), about N^(1/3) of them. A binned
    error is above zero even for a perfectly calibrated model, so its bootstrap bias is taken off
    (Efron and Tibshirani 1993, section 10.4). The half-width is the normal one of the signed gaps,
    whose signs the bins' gaps give; where labels drawn from the model's own confidences would
    often show so large an error (consistency resampling: Broecker and Smith 2007), the lower end
    is zero. A percentile bootstrap would miss zero always: see benchmarks/verdict.md.

    Args:
        probabilities: of each class, (N, K), rows summing to one.
        labels: true classes (N,).
        confidence: of the two-sided interval.
        seed: of the resampling.

    Returns:
        {"ece", "ece_ci", "confidence" (mean highest probability), "accuracy", "curve", "method"};
        the curve's points are {"confidence", "accuracy", "n"}, means in each bin.

    Raises:
        ValueError: shapes that do not fit, or rows that are no probabilities.
    """
    given, labels = np.asarray(probabilities, float), np.asarray(labels)
    if given.ndim != 2 or labels.shape != given.shape[:1] or not labels.size:
        raise ValueError(f"calibration_error: shapes {given.shape} and {labels.shape}")
    if not (given.min() >= -1e-6 and np.allclose(given.sum(axis=1), 1, atol=1e-3)):
        raise ValueError("calibration_error: rows are not probabilities")
    sure = np.clip(given.max(axis=1), 0, 1)  # (N,)
    right = (given.argmax(axis=1) == labels).astype(float)
    n, z = len(sure), quantile(confidence)
    bins = _equal_bins(sure, int(np.clip(round(n ** (1 / 3)), _FEWEST_BINS, _MOST_BINS)))
    member = np.eye(bins.max() + 1)[bins]  # (N, bins)
    gap = right - sure
    signed = gap @ member / n  # (bins,), weighted by the bins' sizes
    plain = float(np.abs(signed).sum())
    random = np.random.default_rng(seed)
    again, drawn = [], []
    for _ in range(0, _RESAMPLES, _CHUNK):
        times = random.multinomial(n, np.full(n, 1 / n), size=_CHUNK)  # (chunk, N)
        again.append(np.abs((times * gap) @ member).sum(axis=1) / n)
        chance = (random.random((_CHUNK, n)) < sure) - sure
        drawn.append(np.abs(chance @ member).sum(axis=1) / n)
    error = max(0.0, 2 * plain - float(np.mean(again)))
    half = z * float((np.sign(signed)[bins] * gap).std()) / math.sqrt(n)
    usual = plain <= float(np.quantile(drawn, 0.5 + confidence / 2))
    return {
        "ece": error,
        "ece_ci": [0.0 if usual else max(0.0, error - half), min(1.0, error + half)],
        "confidence": float(sure.mean()),
        "accuracy": float(right.mean()),
        "curve": [
            {
                "confidence": float(sure[bins == at].mean()),
                "accuracy": float(right[bins == at].mean()),
                "n": int((bins == at).sum()),
            }
            for at in range(bins.max() + 1)
        ],
        "method": f"{bins.max() + 1} bins of equally many examples, bias taken off by bootstrap",
    }


def _equal_bins(values: np.ndarray, count: int) -> np.ndarray:
    """Return each value's bin, (N,), numbered without holes; equal values share one."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, count + 1)[1:-1]))
    return np.unique(np.searchsorted(edges, values, side="left"), return_inverse=True)[1]


def seeds_spread(
    draws: Sequence[tuple[np.ndarray, np.ndarray]], confidence: float = 0.95
) -> dict[str, Any]:
    """Return the drop over draws of the shots, with an interval that counts draws and examples.

    Draws share the test set, so drops vary by draw, by example and by both together: a two-way
    layout without replication. With mean squares MS over S draws and N examples the half-width is

        sqrt(max(t^2 MS_draw + z^2 max(0, MS_example - MS_rest), z^2 MS_example) / (S N)),

    t with S - 1 degrees of freedom: each source of variance has a quantile of its own, as in the
    modified large-sample intervals of Graybill and Wang (JASA 75, 1980). t over the draws alone
    would forget that they share the examples, and a bootstrap of two or three draws is too short.
    With two discordant pairs a draw or fewer, the interval is at least the draws' mean exact one.

    Args:
        draws: by draw, whether the teacher and the specialist answered right, (N,) each, on the
            same examples in the same order.
        confidence: of the two-sided interval.

    Returns:
        {"drop_mean", "drop_sd" (over draws), "drop_ci", "method"}.

    Raises:
        ValueError: fewer than two draws, or shapes that differ.
    """
    shapes = {np.shape(right) for draw in draws for right in draw}
    if len(draws) < 2 or len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f"seeds_spread: {len(draws)} draws of shapes {sorted(shapes)}")
    drops = np.array([np.asarray(a, float) - np.asarray(b, float) for a, b in draws])  # (S, N)
    count, n = drops.shape
    by_draw, by_example, mean = drops.mean(axis=1), drops.mean(axis=0), float(drops.mean())
    ms_draw = n * by_draw.var(ddof=1)
    ms_example = count * by_example.var(ddof=1) if n > 1 else 0.0
    rest = drops - by_draw[:, None] - by_example + mean
    ms_rest = (rest**2).sum() / max(1, (count - 1) * (n - 1))
    z = quantile(confidence)
    t = float(stats.t.ppf(0.5 + confidence / 2, count - 1))
    both = t * t * ms_draw + z * z * max(0.0, ms_example - ms_rest)
    half = math.sqrt(max(both, z * z * ms_example) / (count * n))
    low, high = max(-1.0, mean - half), min(1.0, mean + half)
    if (drops != 0).sum() <= _FEW_PAIRS * count:
        # hardly a discordant pair: variances say nothing, and no pair at all is no certainty
        ends = [paired_bounds(int((d > 0).sum()), int((d < 0).sum()), n, confidence) for d in drops]
        low = min(low, float(np.mean([end[0] for end in ends])))
        high = max(high, float(np.mean([end[1] for end in ends])))
    return {
        "drop_mean": mean,
        "drop_sd": float(by_draw.std(ddof=1)),
        "drop_ci": [low, high],
        "method": (
            f"two-way layout of {count} draws and {n} examples: t over the draws, normal over the "
            "examples"
        ),
    }
