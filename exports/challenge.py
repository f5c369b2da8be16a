"""Whether a challenger takes the champion's place: better, or as good and smaller or faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from exports.statistics import mcnemar
from exports.verdict import paired_interval

# A size that differs by less is the same: graph names and metadata move a file by some bytes.
SAME_BYTES = 0.005


def challenge(
    champion: Mapping[str, Any],
    challenger: Mapping[str, Any],
    *,
    champion_right: np.ndarray,
    challenger_right: np.ndarray,
    latency_ratio: float,
    latency_ci: Sequence[float],
    equal_within: float,
    confidence: float,
) -> dict[str, Any]:
    """Compare two specialists on the same examples and decide which is to be served.

    The challenger is promoted where it is better (the lower bound of its gain in accuracy is above
    zero; that it meets the recipe's budgets, its verdict has said), or where it is as good (the
    upper bound of its loss is at most `equal_within`) and smaller or faster, and neither bigger
    nor slower. Slower and faster mean that the ratio's whole interval is on one side of 1, bigger
    and smaller a difference of more than `SAME_BYTES`. Everything else leaves the champion where
    it is: a draw changes nothing.

    Args:
        champion, challenger: each with "bytes" and "latency_ms".
        champion_right, challenger_right: whether each answered right, (N,) each.
        latency_ratio: the champion's time over the challenger's: above 1, the challenger is faster.
        latency_ci: (low, high) of that ratio.
        equal_within: loss of accuracy that still counts as equal.
        confidence: of the two-sided intervals.

    Returns:
        {"promote", "reasons", "comparison": {"n", "gain", "gain_ci", "mcnemar_p", "bytes_ratio",
        "latency_ratio", "latency_ci"}}; ratios are champion over challenger, so more is better.

    Raises:
        ValueError: numbers of answers differ or are zero, or `equal_within` is not above zero.
    """
    if not equal_within > 0:
        raise ValueError(f"equal_within: {equal_within} is not above zero")
    old, new = np.asarray(champion_right, bool), np.asarray(challenger_right, bool)
    loss, low, high, _ = paired_interval(old, new, confidence)
    p = mcnemar(int((old & ~new).sum()), int((~old & new).sum()))
    bytes_ratio = champion["bytes"] / challenger["bytes"]
    fast_low, fast_high = latency_ci
    better, equal = high < 0, high <= equal_within
    smaller, bigger = bytes_ratio > 1 + SAME_BYTES, bytes_ratio < 1 / (1 + SAME_BYTES)
    faster, slower = fast_low > 1, fast_high < 1

    accuracy = f"its accuracy differs by {-high:+.4f} to {-low:+.4f} on {len(old)} examples"
    asked = f"{equal_within:.4f} less counts as equal"
    if better:
        reasons = [f"it is more accurate: {accuracy}"]
    elif equal:
        reasons = [f"it is as accurate: {accuracy}; {asked}"]
    else:
        reasons = [f"it may be less accurate: {accuracy}; {asked}"]
    size = f"{challenger['bytes']:,} bytes against {champion['bytes']:,}"
    reasons.append(f"it is {_word(smaller, bigger, 'smaller', 'bigger', 'as big')}: {size}")
    speed = (
        f"{challenger['latency_ms']:.3g} ms against {champion['latency_ms']:.3g} ms, "
        f"{latency_ratio:.2f}x ({fast_low:.2f} to {fast_high:.2f})"
    )
    reasons.append(f"it is {_word(faster, slower, 'faster', 'slower', 'as fast')}: {speed}")

    cheaper = (smaller or faster) and not bigger and not slower
    promote = better or (equal and cheaper)
    return {
        "promote": bool(promote),
        "reasons": reasons,
        "comparison": {
            "n": len(old),
            "gain": -loss,
            "gain_ci": [-high, -low],
            "mcnemar_p": p,
            "bytes_ratio": bytes_ratio,
            "latency_ratio": latency_ratio,
            "latency_ci": [float(fast_low), float(fast_high)],
        },
    }


def _word(more: bool, less: bool, if_more: str, if_less: str, if_equal: str) -> str:
    return if_more if more else if_less if less else if_equal
