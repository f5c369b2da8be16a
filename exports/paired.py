"""Intervals on the difference of two accuracies that were measured on the same examples.

Of n examples b are right for the first model only and c for the second only; the rest tell nothing
about the difference d = (b - c) / n. Under a difference d one nuisance is left, the second
discordant probability q; the first is then q + d.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize, special, stats

# Up to here the exact distribution is summed (milliseconds); beyond, the score test's normal
# approximation is as good: benchmarks/verdict.md has the coverage of both.
EXACT_PAIRS = 40
EXACT = "exact mid-p interval of the score statistic, paired"
SCORE = "Tango 1998 score interval, paired"
_TIE = 1e-9
Counts = np.ndarray | float


def paired_bounds(b: int, c: int, n: int, confidence: float = 0.95) -> tuple[float, float, str]:
    """Return (low, high, method) for d = (b - c) / n: exact where few pairs are discordant.

    Raises:
        ValueError: counts that cannot be.
    """
    if b + c <= EXACT_PAIRS:
        return *midp(b, c, n, confidence), EXACT
    return *tango(b, c, n, confidence), SCORE


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
    _check(b, c, n)
    z = quantile(confidence)
    d = (b - c) / n

    def statistic(x: float) -> float:
        return float(score(b, c, n, x))

    low, high = -1.0, 1.0
    if statistic(low) > z:
        low = float(optimize.brentq(lambda x: statistic(x) - z, low, d, xtol=1e-12))
    if statistic(high) < -z:
        high = float(optimize.brentq(lambda x: statistic(x) + z, d, high, xtol=1e-12))
    return low, high


def midp(b: int, c: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact mid-p interval for a difference of paired proportions, (b - c) / n.

    A bound is where one tail of the score statistic's exact distribution, half of the observed
    value's own probability counted (Lancaster, JASA 56, 1961), falls to half of 1 - confidence.
    The nuisance q is put at its estimate under d, as in the unconditional tests of Hsueh, Liu and
    Chen (Biometrics 57, 2001) and the estimated p-values of Lloyd (Australian & New Zealand
    Journal of Statistics 50, 2008): the largest tail over all q would be needlessly wide.

    Without a discordant pair the upper bound is 1 - (1 - confidence)^(1/n), about 3 / n at 95 %.

    Args:
        b, c: discordant pairs: right then wrong, and wrong then right.
        n: all pairs.
        confidence: of the two-sided interval.

    Raises:
        ValueError: counts that cannot be.
    """
    _check(b, c, n)
    quantile(confidence)  # checks it
    share = (1 - confidence) / 2
    return -_upper(c, b, n, share), _upper(b, c, n, share)


def _upper(b: int, c: int, n: int, share: float) -> float:
    """Return the largest difference whose lower tail still holds `share`."""
    inside, step = (b - c) / n, (math.sqrt(b + c) + 3) / n
    outside = inside
    while outside < 1:
        outside = min(1.0, outside + step)
        if lower_tail(b, c, n, outside) < share:
            break
        inside, step = outside, 2 * step
    else:
        return 1.0
    return float(
        optimize.brentq(lambda x: lower_tail(b, c, n, x) - share, inside, outside, xtol=1e-10)
    )


def lower_tail(b: int, c: int, n: int, d: float) -> float:
    """Return P(T < t) + P(T = t) / 2 of the score statistic under d, t being the observed one."""
    q = max(float(nuisance(b, c, n, d)), -d, 0.0)
    p = max(q + d, 0.0)
    lost, gained = _likely(n, p)[:, None], _likely(n, q)[None, :]
    left = n - lost - gained
    rest = np.maximum(left, 0)
    log_chance = (
        special.gammaln(n + 1)
        - special.gammaln(lost + 1)
        - special.gammaln(gained + 1)
        - special.gammaln(rest + 1)
        + special.xlogy(lost, p)
        + special.xlogy(gained, q)
        + special.xlogy(rest, max(1 - p - q, 0.0))
    )
    chance = np.where(left >= 0, np.exp(log_chance), 0.0)  # (lost, gained)
    observed, statistic = float(score(b, c, n, d)), score(lost, gained, n, d)
    if math.isinf(observed):
        tied = statistic == observed
    else:
        tied = np.abs(statistic - observed) < _TIE
    return float(chance[(statistic < observed) & ~tied].sum() + chance[tied].sum() / 2)


def _likely(n: int, p: float) -> np.ndarray:
    """Return the counts of n that have more than about 1e-9 of the chance under p."""
    middle, spread = n * p, math.sqrt(n * p * (1 - p))
    first, last = middle - 6.5 * spread - 1, middle + 6.5 * spread + 12
    return np.arange(max(0, int(first)), min(n, int(last)) + 1)


def nuisance(b: Counts, c: Counts, n: int, d: float) -> np.ndarray:
    """Return the likeliest second discordant probability under difference d (Tango 1998, eq. 6).

    It solves 2n q^2 + B q + C = 0.
    """
    big_b = -np.asarray(b) - c + (2 * n - np.asarray(b) + c) * d
    big_c = -np.asarray(c) * d * (1 - d)
    return (np.sqrt(np.maximum(big_b * big_b - 8 * n * big_c, 0.0)) - big_b) / (4 * n)


def score(b: Counts, c: Counts, n: int, d: float) -> np.ndarray:
    """Return Tango's score statistic for difference d; decreasing in d, 0 at (b - c) / n.

    Args:
        b, c: discordant pairs, numbers or arrays that broadcast.
        n: all pairs.
        d: the difference that is tested.
    """
    gap = np.asarray(b) - c - n * d
    variance = n * (2 * nuisance(b, c, n, d) + d * (1 - d))
    spread = np.sqrt(np.maximum(variance, 0.0))
    far = np.where(gap > 0, math.inf, -math.inf)  # no spread under d: any gap rules d out
    values = np.divide(gap, spread, out=far, where=spread > 0)
    return np.where(np.abs(gap) < _TIE, 0.0, values)


def quantile(confidence: float) -> float:
    """Return z of a two-sided interval.

    Raises:
        ValueError: `confidence` is not in (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: {confidence} is not in (0, 1)")
    return float(stats.norm.ppf(0.5 + confidence / 2))


def _check(b: int, c: int, n: int) -> None:
    if min(b, c) < 0 or b + c > n or n < 1:
        raise ValueError(f"pairs: {b} and {c} discordant of {n} pairs")
