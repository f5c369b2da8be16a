"""What a test set of a given size will say: chances of each verdict, and the size that settles it.

Nothing is drawn: the chances are sums over the discordant counts (b, c), which are trinomial.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import stats

from exports.paired import EXACT_PAIRS, lower_tail, nuisance, quantile, score

MOST = 1_000_000  # more test examples than this nobody will label
# From here on the verdict's chances are read off the score statistic's normal approximation.
_MANY_DISCORDANT = 2_000


def chances(
    n: int, p: float, q: float, max_drop: float, confidence: float = 0.95
) -> tuple[float, float]:
    """Return how likely n examples are to pass and to fail, by the interval of the verdict.

    Args:
        n: test examples.
        p, q: probabilities that an example is lost (the teacher's only) and gained.
        max_drop: the drop that is still accepted.
        confidence: of the two-sided interval.

    Raises:
        ValueError: `p` and `q` cannot be.
    """
    if min(p, q) < 0 or p + q > 1 or n < 1:
        raise ValueError(f"chances: {n} examples, probabilities {p} and {q}")
    if n * (p + q) > _MANY_DISCORDANT:
        return _normal_chances(n, p, q, max_drop, confidence)
    gained = _counts(n, q)
    passes, fails = decisions(n, gained, max_drop, confidence)
    weight = stats.binom.pmf(gained, n, q)
    share = min(1.0, p / (1 - q)) if q < 1 else 0.0  # of those that are not gained
    return (
        float(weight @ stats.binom.cdf(passes, n - gained, share)),
        float(weight @ stats.binom.sf(fails - 1, n - gained, share)),
    )


def decisions(
    n: int, gained: np.ndarray, max_drop: float, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each count of gained examples, where the verdict on n of them turns.

    It is `exports.paired.paired_bounds` read the other way round: the upper bound is at most
    `max_drop` exactly where the test of that drop rejects, and so on.

    Returns:
        (passes, fails), (len(gained),) each: the largest number of lost examples that passes (-1:
        none does) and the smallest one that fails (n + 1: none does).
    """
    z, share = quantile(confidence), (1 - confidence) / 2
    passes = _last_true(lambda b: score(b, gained, n, max_drop) <= -z, n, len(gained))
    fails = _last_true(lambda b: score(b, gained, n, max_drop) <= z, n, len(gained)) + 1
    for at, c in enumerate(gained.tolist()):
        if c > EXACT_PAIRS:
            continue
        most = min(EXACT_PAIRS, n) - c  # beyond it the score interval holds
        b = min(int(passes[at]), most)
        while b >= 0 and lower_tail(b, c, n, max_drop) >= share:
            b -= 1
        while b < most and lower_tail(b + 1, c, n, max_drop) < share:
            b += 1
        passes[at] = max(passes[at], b) if b == most else b
        b = min(int(fails[at]), most + 1)
        while b > 0 and lower_tail(c, b - 1, n, -max_drop) < share:
            b -= 1
        while b <= most and lower_tail(c, b, n, -max_drop) >= share:
            b += 1
        fails[at] = max(int(fails[at]), b) if b > most else b
    return passes, fails


def examples_to_settle(
    lost: int,
    gained: int,
    n: int,
    max_drop: float,
    confidence: float = 0.95,
    power: float = 0.8,
) -> dict[str, Any] | None:
    """Return how many test examples would settle an inconclusive verdict.

    Args:
        lost, gained: examples only the teacher, and only the specialist, got right.
        n: all test examples.
        max_drop: the drop that is still accepted.
        confidence: of the two-sided interval.
        power: chance, at the observed rates, that so many examples pass or fail.

    Returns:
        {"n", "more", "power", "text"}; None where the verdict is settled already, or where the
        observed drop is so near to `max_drop` that a million examples would not do.
    """

    def settled(count: int) -> float:
        return sum(chances(count, lost / n, gained / n, max_drop, confidence))

    at = decisions(n, np.array([gained]), max_drop, confidence)
    if lost <= at[0][0] or lost >= at[1][0]:
        return None
    short, enough = n, n + 1
    while settled(enough) < power:
        short, enough = enough, 2 * enough
        if enough > MOST:
            return None
    while enough - short > max(1, enough // 500):  # a finer figure would be a pretence
        middle = (short + enough) // 2
        short, enough = (short, middle) if settled(middle) >= power else (middle, enough)
    passing, failing = chances(enough, lost / n, gained / n, max_drop, confidence)
    return {
        "n": enough,
        "more": enough - n,
        "power": power,
        "text": (
            f"{enough - n:,} more test examples ({enough:,} in all) would settle it with a chance "
            f"of {power:.0%}, most likely as a {'pass' if passing > failing else 'fail'}, if the "
            "two models go on differing as they do here"
        ),
    }


def _normal_chances(
    n: int, p: float, q: float, max_drop: float, confidence: float
) -> tuple[float, float]:
    """Return `chances` where the score statistic is as good as normal."""
    z, drop = quantile(confidence), p - q
    under = 2 * float(nuisance(n * p, n * q, n, max_drop)) + max_drop * (1 - max_drop)
    shift = math.sqrt(n) * (max_drop - drop)
    spread = math.sqrt(p + q - drop * drop)
    edge = z * math.sqrt(under)
    return (
        float(stats.norm.cdf((shift - edge) / spread)),
        float(stats.norm.cdf((-shift - edge) / spread)),
    )


def _counts(n: int, p: float) -> np.ndarray:
    """Return the counts of n that hold all but 1e-9 of the chance under p."""
    first, last = stats.binom.ppf([1e-9, 1 - 1e-9], n, p)
    return np.arange(max(0, int(first) - 1), min(n, int(last) + 1) + 1)


def _last_true(test: Any, n: int, size: int) -> np.ndarray:
    """Return, by element, the largest count of 0..n that passes a test true up to some count."""
    low, high = np.full(size, -1), np.full(size, n + 1)
    while (high - low > 1).any():
        middle = (low + high) // 2
        passes = test(middle)
        low, high = np.where(passes, middle, low), np.where(passes, high, middle)
    return low
