"""The interval on the difference of two accuracies that were measured on different examples."""

from __future__ import annotations

import math

from scipy import optimize

from exports.paired import quantile

METHOD = "Miettinen-Nurminen 1985 score interval, unpaired"
MOST = 1_000_000  # more new examples than this nobody will label


def miettinen_nurminen(
    x: int, m: int, y: int, n: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the score interval for the difference x/m - y/n of two independent proportions.

    Inverts the score test (Miettinen and Nurminen, Statistics in Medicine 4, 1985): the bounds are
    the differences d at which

        (x/m - y/n - d)^2 = z^2 (p(1-p)/m + q(1-q)/n) (m+n)/(m+n-1),

    with p and q = p - d the likeliest proportions under d.

    Raises:
        ValueError: counts that cannot be.
    """
    _check(x, m, y, n)
    z, gap = quantile(confidence), x / m - y / n

    def statistic(d: float) -> float:
        return _statistic(x, m, y, n, d)

    low, high = -1.0, 1.0
    if gap > -1 and statistic(-1.0 + 1e-12) > z:
        low = float(optimize.brentq(lambda d: statistic(d) - z, -1 + 1e-12, gap, xtol=1e-12))
    if gap < 1 and statistic(1.0 - 1e-12) < -z:
        high = float(optimize.brentq(lambda d: statistic(d) + z, gap, 1 - 1e-12, xtol=1e-12))
    return low, high


def likeliest(x: int, m: int, y: int, n: int, d: float) -> tuple[float, float]:
    """Return the likeliest (p, q) with p - q = d: the root of the score equation's cubic.

    The closed form is that of Miettinen and Nurminen (1985), appendix 1.
    """
    all_, hits = m + n, x + y
    l3 = all_
    l2 = (m + 2 * n) * d - all_ - hits
    l1 = (n * d - all_ - 2 * y) * d + hits
    l0 = y * d * (1 - d)
    u = l2**3 / (3 * l3) ** 3 - l1 * l2 / (6 * l3**2) + l0 / (2 * l3)
    v = math.copysign(math.sqrt(max(l2**2 / (3 * l3) ** 2 - l1 / (3 * l3), 0.0)), u)
    turn = max(-1.0, min(1.0, u / v**3)) if v else 0.0
    q = 2 * v * math.cos((math.pi + math.acos(turn)) / 3) - l2 / (3 * l3)
    q = min(max(q, max(0.0, -d)), min(1.0, 1.0 - d))
    return q + d, q


def examples_to_tell(x: int, m: int, rate: float, most_drop: float, confidence: float) -> int:
    """Return how many new examples would put the drop's interval on one side of `most_drop`.

    Args:
        x, m: right answers and examples of the first measurement, which stays as it is.
        rate: accuracy on the new examples, taken as it was seen.
        most_drop: the drop that is still accepted.

    Returns:
        The number; `MOST` where no number would do, since the first measurement is too small.
    """

    def told(n: int) -> bool:
        low, high = miettinen_nurminen(x, m, round(rate * n), n, confidence)
        return high <= most_drop or low > most_drop

    if not told(MOST):
        return MOST
    few, many = 1, MOST
    while few < many - 1:
        middle = math.isqrt(few * many) if many > 4 * few else (few + many) // 2
        few, many = (few, middle) if told(middle) else (middle, many)
    return many


def _statistic(x: int, m: int, y: int, n: int, d: float) -> float:
    p, q = likeliest(x, m, y, n, d)
    variance = (p * (1 - p) / m + q * (1 - q) / n) * (m + n) / (m + n - 1)
    gap = x / m - y / n - d
    if variance <= 0:
        return 0.0 if abs(gap) < 1e-12 else math.copysign(math.inf, gap)
    return gap / math.sqrt(variance)


def _check(x: int, m: int, y: int, n: int) -> None:
    if not (0 <= x <= m and 0 <= y <= n) or min(m, n) < 1:
        raise ValueError(f"proportions: {x} of {m} and {y} of {n}")
