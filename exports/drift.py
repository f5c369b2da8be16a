"""Whether inputs without labels still look like the test set, as the specialist sees them.

All of it is read off class probabilities, which are a few numbers an example whatever the input
is: black-box shift detection (Lipton, Wang and Smola 2018; BBSDs in Rabanser, Guennemann and
Lipton, Failing Loudly, NeurIPS 2019).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from exports.statistics import holm

METHOD = (
    "Kolmogorov-Smirnov test a class probability (Rabanser et al. 2019) and chi-squared test of "
    "the predicted classes, Holm over all"
)
ESTIMATE = (
    "average thresholded confidence (Garg et al. 2022) and difference of confidences (Guillory et "
    "al. 2021), bootstrap"
)
# A large sample tells apart what makes no difference: below these, a difference is none.
KS_FLOOR, SHARE_FLOOR = 0.10, 0.05
LEAST_ROWS = 20  # fewer tell nothing
_DRAWS = 2000
_LEAST_EXPECTED = 5.0  # of a cell of the chi-squared test


def drift(
    reference: np.ndarray,
    seen: np.ndarray,
    classes: Sequence[str],
    *,
    confidence: float = 0.95,
    ks_floor: float = KS_FLOOR,
    share_floor: float = SHARE_FLOOR,
) -> dict[str, Any]:
    """Compare class probabilities of new inputs with those of the test set.

    There is drift where a test rejects at 1 - confidence, adjusted for all of them (Holm 1979),
    and its effect is large enough to matter: the largest distance of the two distribution
    functions of one class probability, or the total variation between the predicted classes.

    Args:
        reference, seen: log probabilities (M, K) and (N, K).
        classes: K names.

    Returns:
        {"drifted", "n", "ks", "ks_class", "p", "shares_moved", "shares", "method"}: `ks` is the
        largest distance and `ks_class` its class, `p` the smallest adjusted p-value, `shares` a
        row a class: {"class", "before", "now"}.

    Raises:
        ValueError: shapes that do not fit, or no rows.
    """
    _check(reference, seen, len(classes))
    k = len(classes)
    old, new = np.exp(reference), np.exp(seen)
    told = range(k if k > 2 else 1)  # of two probabilities one says all
    tests = [stats.ks_2samp(old[:, at], new[:, at], method="asymp") for at in told]
    distances = np.array([float(test.statistic) for test in tests])
    before, now = (_counts(probabilities) for probabilities in (old, new))
    moved = float(np.abs(before / len(old) - now / len(new)).sum() / 2)
    adjusted = np.array(holm([*(float(test.pvalue) for test in tests), _shares_p(before, now)]))
    effects = np.append(distances >= ks_floor, moved >= share_floor)
    worst = int(distances.argmax())
    return {
        "drifted": bool((effects & (adjusted < 1 - confidence)).any()),
        "n": len(new),
        "ks": float(distances[worst]),
        "ks_class": classes[worst],
        "p": float(adjusted.min()),
        "shares_moved": moved,
        "shares": [
            {"class": name, "before": float(a / len(old)), "now": float(b / len(new))}
            for name, a, b in zip(classes, before, now, strict=True)
        ],
        "method": METHOD,
    }


def estimated_drop(
    reference: np.ndarray,
    right: np.ndarray,
    seen: np.ndarray,
    *,
    confidence: float = 0.95,
    seed: int = 0,
    draws: int = _DRAWS,
) -> dict[str, Any]:
    """Estimate accuracy on inputs without labels, and its drop from the test set's.

    Two estimates that fail in different ways; the interval reaches from the lower end of one to
    the upper end of the other, so that what it says both of them say.

    - Average thresholded confidence (Garg, Balakrishnan, Lipton, Neyshabur and Sedghi, ICLR 2022):
      t is put where as many of the test set score below it as were answered wrong; of the new
      inputs, the share at or above t is the estimate. The score is the negative entropy. It takes
      a calibrated model that is less sure for a worse one than it is.
    - Difference of confidences (Guillory et al., ICCV 2021): the drop is that of the mean largest
      probability. It is exact for a calibrated model, and too small for one that is sure of what
      it does not know.

    The intervals are the bootstrap's, over both sets of examples and so over t. All of it holds as
    far as confidence still means what it meant, so it supports a decision where drift was found,
    never alone.

    Args:
        reference: log probabilities of the test set, (M, K), of which `right`, (M,), were right.
        seen: log probabilities of the new inputs, (N, K).

    Returns:
        {"accuracy", "first", "drop", "drop_ci", "by_threshold", "by_confidence", "method"}:
        `accuracy` and `drop` are the means of both estimates, `by_*` the drops of each.

    Raises:
        ValueError: shapes that do not fit, or no rows.
    """
    _check(reference, seen, reference.shape[1])
    right = np.asarray(right, bool)
    if right.shape != (len(reference),):
        raise ValueError(f"estimated_drop: {len(reference)} rows and {right.shape} answers")
    scores, new = _negative_entropy(reference), np.sort(_negative_entropy(seen))
    sure, now_sure = np.exp(reference.max(axis=1)), np.exp(seen.max(axis=1))
    m, n, first = len(scores), len(new), float(right.mean())
    by_threshold = first - _share_above(new, _threshold(np.sort(scores), m - int(right.sum())))
    by_confidence = float(sure.mean() - now_sure.mean())
    random = np.random.default_rng(seed)
    drops = np.empty((draws, 2))
    for at in range(draws):
        rows, others = random.integers(0, m, m), random.integers(0, n, n)
        correct = int(right[rows].sum())
        share = _share_above(new, _threshold(np.sort(scores[rows]), m - correct))
        # of N new inputs drawn with replacement, a binomial number lies above the threshold
        drops[at, 0] = correct / m - random.binomial(n, share) / n
        drops[at, 1] = sure[rows].mean() - now_sure[others].mean()
    tail = (1 - confidence) / 2
    bounds = np.quantile(drops, [tail, 1 - tail], axis=0)  # (2, 2)
    drop = (by_threshold + by_confidence) / 2
    return {
        "accuracy": first - drop,
        "first": first,
        "drop": drop,
        "drop_ci": [float(bounds[0].min()), float(bounds[1].max())],
        "by_threshold": by_threshold,
        "by_confidence": by_confidence,
        "method": ESTIMATE,
    }


def drift_text(found: Mapping[str, Any]) -> str:
    """One sentence on what `drift` found."""
    most = max(found["shares"], key=lambda row: abs(row["now"] - row["before"]))
    sentence = (
        f"{found['n']:,} inputs: the probability of {found['ks_class']!r} is distributed up to "
        f"{found['ks']:.2f} apart from the test set's, {found['shares_moved']:.0%} of the answers "
        f"went to other classes ({most['class']!r} {most['before']:.0%} before, {most['now']:.0%} "
        f"now), adjusted p {found['p']:.2g}"
    )
    return f"{'drift' if found['drifted'] else 'no drift'} in {sentence}"


def _threshold(rising: np.ndarray, wrong: int) -> float:
    """Return t with `wrong` of the rising scores below it."""
    return float(rising[wrong]) if wrong < len(rising) else np.inf


def _share_above(rising: np.ndarray, threshold: float) -> float:
    return 1 - float(np.searchsorted(rising, threshold, side="left")) / len(rising)


def _negative_entropy(log_probabilities: np.ndarray) -> np.ndarray:
    wide = log_probabilities.astype(np.float64)
    return (np.exp(wide) * np.where(np.isfinite(wide), wide, 0.0)).sum(axis=1)


def _counts(probabilities: np.ndarray) -> np.ndarray:
    return np.bincount(probabilities.argmax(axis=1), minlength=probabilities.shape[1])


def _shares_p(before: np.ndarray, now: np.ndarray) -> float:
    """The chi-squared test of two sets of counts, classes that are too rare for it together."""
    total = before + now
    smaller = min(before.sum(), now.sum()) / total.sum()
    common = total * smaller >= _LEAST_EXPECTED
    table = np.stack([before, now])
    rest = table[:, ~common].sum(axis=1, keepdims=True)
    table = np.hstack([table[:, common], rest[:, : int(rest.sum() > 0)]])
    if table.shape[1] < 2:
        return 1.0
    return float(stats.chi2_contingency(table, correction=False).pvalue)


def _check(reference: np.ndarray, seen: np.ndarray, k: int) -> None:
    shapes = reference.shape, seen.shape
    if any(len(shape) != 2 or shape[1] != k or shape[0] < 1 for shape in shapes) or k < 2:
        raise ValueError(f"drift: shapes {shapes[0]} and {shapes[1]} for {k} classes")
