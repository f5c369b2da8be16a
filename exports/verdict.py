"""A verdict with statistics: intervals on accuracies and on their paired difference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from exports.paired import paired_bounds, quantile, tango

__all__ = ["paired_interval", "smallest_passable_n", "tango", "verdict", "wilson"]

Status = Literal["pass", "fail", "inconclusive"]


def wilson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval (1927) for a proportion of `k` in `n`.

    Raises:
        ValueError: not 0 <= k <= n with n >= 1.
    """
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"wilson: {k} of {n} is not a proportion")
    z = quantile(confidence)
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

    The interval is exact (mid-p) where few examples tell the models apart and Tango's score
    interval otherwise; benchmarks/verdict.md has the coverage of both.

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
    low, high, method = paired_bounds(lost, gained, teacher.size, confidence)
    return (lost - gained) / teacher.size, low, high, method


def smallest_passable_n(max_drop: float, confidence: float = 0.95, most: int = 10**8) -> int:
    """Return the smallest test set on which even a flawless specialist can pass.

    With no discordant pair at all the upper bound is 1 - (1 - confidence)^(1/n), so a pass needs
    n >= log(1 - confidence) / log(1 - max_drop), about 3 / max_drop at 95 %; smaller sets are
    inconclusive whatever the model does.

    Raises:
        ValueError: `max_drop` is not in (0, 1), or no set of `most` examples would do.
    """
    if not 0 < max_drop < 1:
        raise ValueError(f"max_drop: {max_drop} is not in (0, 1)")
    quantile(confidence)  # checks it
    n = max(1, math.ceil(math.log1p(-confidence) / math.log1p(-max_drop) - 1e-9))
    # rounding at the boundary; far beyond `most` one example more moves the bound by less than that
    while n <= most and paired_bounds(0, 0, n, confidence)[1] > max_drop:
        n += 1
    if n > most:
        raise ValueError(f"max_drop: {max_drop} would need {n} test examples")
    return n


def verdict(
    drop_ci: tuple[float, float],
    max_drop: float,
    budgets: Iterable[Mapping[str, Any]] = (),
    *,
    needed: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Decide: pass, fail or inconclusive, with the reasons.

    Args:
        drop_ci: (low, high) of the accuracy drop.
        max_drop: the drop that is still accepted.
        budgets: each {"name", "asked", "measured", "at_least": bool}: a budget of the recipe's
            target and what was measured (None: not measured, which is inconclusive; so is one
            with a "doubt", the reason for which its measurement cannot be relied on).
        needed: what `exports.power.examples_to_settle` says of this drop.

    Returns:
        {"status", "reasons", "needed"}: pass when the upper bound is at most `max_drop` and every
        budget holds; fail when the lower bound is above it or a budget is missed; else
        inconclusive. `needed` is given back where more test examples are what is missing, else
        None.
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
        if budget.get("doubt"):
            doubts.append(f"{budget['name']} is {measured:,.4g}, but {budget['doubt']}")
            continue
        held = measured >= asked if budget["at_least"] else measured <= asked
        text = f"{budget['name']} is {measured:,.4g}, asked {sign} {asked:,.4g}"
        (reasons if held else fails).append(text)
    status: Status = "fail" if fails else "inconclusive" if doubts else "pass"
    open_on_accuracy = status == "inconclusive" and low <= max_drop < high
    return {
        "status": status,
        "reasons": [*fails, *doubts, *reasons],
        "needed": dict(needed) if needed is not None and open_on_accuracy else None,
    }
