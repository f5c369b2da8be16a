from __future__ import annotations

import numpy as np
import pytest

from exports.paired import midp
from exports.parity import break_of, hop
from exports.verdict import paired_interval, smallest_passable_n, verdict, wilson


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_published_values(k: int, n: int, low: float, high: float) -> None:
    assert wilson(k, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    assert wilson(n - k, n) == (pytest.approx(1 - high, abs=5e-5), pytest.approx(1 - low, abs=5e-5))


def test_paired_interval_counts_discordant_pairs() -> None:
    teacher = np.array([1] * 90 + [0] * 10, bool)
    specialist = teacher.copy()
    specialist[:4] = False
    specialist[-1] = True
    drop, low, high, method = paired_interval(teacher, specialist)
    assert drop == pytest.approx(0.03)
    assert (low, high) == midp(4, 1, 100)
    assert "exact" in method
    with pytest.raises(ValueError, match="shapes"):
        paired_interval(teacher, specialist[:5])


@pytest.mark.parametrize("max_drop", [0.002, 0.01, 0.03, 0.2])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_smallest_passable_n_is_the_smallest(max_drop: float, confidence: float) -> None:
    n = smallest_passable_n(max_drop, confidence)
    assert midp(0, 0, n, confidence)[1] <= max_drop < midp(0, 0, n - 1, confidence)[1]


def test_verdict() -> None:
    assert verdict((-0.01, 0.02), 0.02)["status"] == "pass"
    assert verdict((0.021, 0.05), 0.02)["status"] == "fail"
    assert verdict((0.0, 0.021), 0.02)["status"] == "inconclusive"
    speed = {"name": "speedup", "asked": 2.0, "measured": 2.4, "at_least": True}
    size = {"name": "bytes", "asked": 5e6, "measured": 6e6, "at_least": False}
    assert verdict((-0.01, 0.02), 0.03, [speed])["status"] == "pass"
    missed = verdict((-0.01, 0.02), 0.03, [speed, size])
    assert missed["status"] == "fail"
    assert missed["reasons"][0].startswith("bytes is 6e+06") and len(missed["reasons"]) == 3
    unknown = verdict((-0.01, 0.02), 0.03, [{**speed, "measured": None}])
    assert unknown["status"] == "inconclusive"


def test_more_examples_are_needed_only_where_they_would_help() -> None:
    told = {"n": 900, "more": 300, "power": 0.8, "text": "300 more"}
    slow = {"name": "speedup", "asked": 2.0, "measured": 1.4, "at_least": True}
    unknown = {**slow, "measured": None}
    assert verdict((0.0, 0.03), 0.02, needed=told)["needed"] == told
    assert verdict((0.0, 0.03), 0.02, [unknown], needed=told)["needed"] == told
    assert verdict((0.0, 0.03), 0.02)["needed"] is None
    assert verdict((0.0, 0.01), 0.02, needed=told)["needed"] is None  # passes
    assert verdict((0.0, 0.03), 0.02, [slow], needed=told)["needed"] is None  # fails anyhow
    assert verdict((0.0, 0.01), 0.02, [unknown], needed=told)["needed"] is None


def test_bad_statistics_are_named() -> None:
    for call, match in (
        (lambda: wilson(3, 2), "3 of 2"),
        (lambda: wilson(0, 0), "0 of 0"),
        (lambda: wilson(1, 2, 1.0), "confidence"),
        (lambda: smallest_passable_n(0.0), "max_drop"),
        (lambda: smallest_passable_n(1e-8), "would need 2995732"),
        (lambda: smallest_passable_n(1e-12), "would need"),  # told, not looked for
    ):
        with pytest.raises(ValueError, match=match):
            call()


def test_hop_measures_and_break_of_names_the_hop() -> None:
    a = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [0.1, 0.0]], np.float32)
    b = a.copy()
    b[3] = [0.0, 0.5]  # the fourth label flips
    labels = np.array([0, 1, 0, 0])
    first = hop("torch->onnx", a, a, labels)
    second = hop("onnx->int8", a, b, labels)
    assert first == {"hop": "torch->onnx", "max_abs": 0.0, "agreement": 1.0, "accuracy": 1.0}
    assert second["max_abs"] == 0.5 and second["agreement"] == 0.75 and second["accuracy"] == 0.75
    assert hop("x", a, b, None)["accuracy"] is None
    chain = [first, second]
    assert break_of(chain, {}) is None
    assert break_of(chain, {"onnx->int8": {"max_abs": 1.0, "agreement": 0.7, "drop": 0.3}}) is None
    for bound in ({"max_abs": 0.4}, {"agreement": 0.9}, {"drop": 0.2}):
        reason = break_of(chain, {"onnx->int8": bound})
        assert reason is not None and "onnx->int8" in reason
    with pytest.raises(ValueError, match="'mean_abs'"):
        break_of(chain, {"onnx->int8": {"mean_abs": 1.0}})
    with pytest.raises(ValueError, match="shape"):
        hop("x", a, b[:2], None)


def test_nan_breaks_every_bound() -> None:
    a = np.zeros((2, 2), np.float32)
    broken = a.copy()
    broken[0, 0] = np.nan
    result = hop("x", a, broken, None)
    assert break_of([result], {"x": {"max_abs": 1e9}}) is not None
