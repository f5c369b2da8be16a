"""A verdict with statistics: intervals on accuracies and on their paired difference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from scipy import optimize, stats

METHOD = "Tango 1998 score interval, paired"
Status = Literal["pass", "fail", "inconclusive"]


def wilson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval (1927) for a proportion of `k` in `n`.

    Raises:
        ValueError: not 0 <= k <= n with n >= 1.
    """
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"wilson: {k} of {n} is not a proportion")
    z = _quantile(confidence)
    p, z2 = k / n, z * z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # At the ends the bound is exact; rounding would leave 1e-17 of it.
    return (0.0 if k == 0 else middle - half), (1.0 if k == n else middle + half)


def paired_interval(
    teacher_correct: np.ndarray | Sequence[bool],
    specialist_correct: np.ndarray | Sequence[bool],
    confidence: float = 0.95,
) -> tuple[float, float, float, str]:
    """Return the drop in accuracy on the same examples with its interval.

    Args:
        teacher_correct, specialist_correct: whether each answered right, (N,) each.
        confidence: of the two-sided interval.

    Returns:
        (drop, low, high, method): the teacher's accuracy minus the specialist's.

    Raises:
        ValueError: lengths differ or are zero.
    """
    teacher = np.asarray(teacher_correct, bool)
    specialist = np.asarray(specialist_correct, bool)
    if teacher.shape != specialist.shape or teacher.ndim != 1 or teacher.size == 0:
        raise ValueError(f"paired_interval: shapes {teacher.shape} and {specialist.shape}")
    lost = int((teacher & ~specialist).sum())
    gained = int((~teacher & specialist).sum())
    low, high = tango(lost, gained, teacher.size, confidence)
    return (lost - gained) / teacher.size, low, high, METHOD


def tango(b: int, c: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Tango's score interval for a difference of paired proportions, (b - c) / n.

    Inverts the score test (Tango, Statistics in Medicine 17, 1998, eq. 8): the bounds are the
    differences d at which

        T(d) = (b - c - n d) / sqrt(n (2 q(d) + d (1 - d))) = +-z,

    with q(d) the maximum-likelihood estimate of the second discordant probability under d.

    Args:
        b, c: discordant pairs: right then wrong, and wrong then right.
        n: all pairs.
        confidence: of the two-sided interval.

    Raises:
        ValueError: counts that cannot be.
    """
    if min(b, c) < 0 or b + c > n or n < 1:
        raise ValueError(f"tango: {b} and {c} discordant of {n} pairs")
    z = _quantile(confidence)
    d = (b - c) / n
    low, high = -1.0, 1.0
    if _score(b, c, n, low) > z:
        low = float(optimize.brentq(lambda x: _score(b, c, n, x) - z, low, d, xtol=1e-12))
    if _score(b, c, n, high) < -z:
        high = float(optimize.brentq(lambda x: _score(b, c, n, x) + z, d, high, xtol=1e-12))
    return low, high


def _score(b: int, c: int, n: int, d: float) -> float:
    """Return the score statistic for difference d; decreasing in d, 0 at (b - c) / n."""
    gap = b - c - n * d
    if abs(gap) < 1e-12:
        return 0.0
    # q solves 2n q^2 + B q + C = 0, the restricted likelihood's equation
    big_b = -b - c + (2 * n - b + c) * d
    big_c = -c * d * (1 - d)
    q = (math.sqrt(max(big_b * big_b - 8 * n * big_c, 0.0)) - big_b) / (4 * n)
    variance = n * (2 * q + d * (1 - d))
    return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap)


def smallest_passable_n(max_drop: float, confidence: float = 0.95, most: int = 10_000_000) -> int:
    """Return the smallest test set on which even a flawless specialist can pass.

    With no discordant pair at all the upper bound is z^2 / (n + z^2), so a pass needs
    n >= z^2 (1 - max_drop) / max_drop; smaller sets are inconclusive whatever the model does.

    Raises:
        ValueError: `max_drop` is not in (0, 1), or no set of `most` examples would do.
    """
    if not 0 < max_drop < 1:
        raise ValueError(f"max_drop: {max_drop} is not in (0, 1)")
    z2 = _quantile(confidence) ** 2
    n = max(1, math.ceil(z2 * (1 - max_drop) / max_drop - 1e-9))
    while tango(0, 0, n, confidence)[1] > max_drop:  # rounding at the boundary
        n += 1
    if n > most:
        raise ValueError(f"max_drop: {max_drop} would need {n} test examples")
    return n


def verdict(
    drop_ci: tuple[float, float], max_drop: float, budgets: Iterable[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Decide: pass, fail or inconclusive, with the reasons.

    Args:
        drop_ci: (low, high) of the accuracy drop.
        max_drop: the drop that is still accepted.
        budgets: each {"name", "asked", "measured", "at_least": bool}: a budget of the recipe's
            target and what was measured (None: not measured, which is inconclusive).

    Returns:
        {"status", "reasons"}: pass when the upper bound is at most `max_drop` and every budget
        holds; fail when the lower bound is above it or a budget is missed; else inconclusive.
    """
    low, high = drop_ci
    interval = f"accuracy drop is between {low:+.4f} and {high:+.4f}"
    fails: list[str] = []
    doubts: list[str] = []
    reasons: list[str] = []
    if high <= max_drop:
        reasons.append(f"{interval}, at most {max_drop:.4f} as asked")
    elif low > max_drop:
        fails.append(f"{interval}, all of it above the {max_drop:.4f} asked")
    else:
        doubts.append(f"{interval}, which the test set cannot tell from {max_drop:.4f}")
    for budget in budgets:
        asked, measured = budget["asked"], budget["measured"]
        sign = "at least" if budget["at_least"] else "at most"
        if measured is None:
            doubts.append(f"{budget['name']} was not measured, asked {sign} {asked:,.4g}")
            continue
        held = measured >= asked if budget["at_least"] else measured <= asked
        text = f"{budget['name']} is {measured:,.4g}, asked {sign} {asked:,.4g}"
        (reasons if held else fails).append(text)
    status: Status = "fail" if fails else "inconclusive" if doubts else "pass"
    return {"status": status, "reasons": [*fails, *doubts, *reasons]}


def _quantile(confidence: float) -> float:
    """Return z of a two-sided interval."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: {confidence} is not in (0, 1)")
    return float(stats.norm.ppf(0.5 + confidence / 2))
