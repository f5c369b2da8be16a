from __future__ import annotations

import numpy as np
import pytest

from exports.parity import break_of, hop
from exports.verdict import paired_interval, smallest_passable_n, tango, verdict, wilson


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


def test_tango_published_values() -> None:
    # Fagerland, Lydersen, Laake, Statistics in Medicine 33 (2014): airway hyper-responsiveness
    # before and after transplantation (Bentur et al. 2009), 1 and 7 discordant of 21
    assert tango(1, 7, 21) == (pytest.approx(-0.517, abs=5e-4), pytest.approx(-0.026, abs=5e-4))
    # PropCIs::scoreci.mp(25, 28, 618, 0.90), which estimates (c - b) / n
    assert tango(28, 25, 618, 0.90) == (
        pytest.approx(-0.0148, abs=5e-5),
        pytest.approx(0.0247, abs=5e-5),
    )


@pytest.mark.parametrize("counts", [(12, 2, 50), (0, 5, 30), (3, 3, 6), (50, 0, 50), (0, 0, 128)])
def test_tango_is_antisymmetric_and_nested(counts: tuple[int, int, int]) -> None:
    b, c, n = counts
    low, high = tango(b, c, n)
    assert -1 <= low <= (b - c) / n <= high <= 1
    assert tango(c, b, n) == (pytest.approx(-high, abs=1e-9), pytest.approx(-low, abs=1e-9))
    wide = tango(b, c, n, 0.99)
    assert wide[0] <= low and high <= wide[1]


def test_no_discordant_pair_has_a_closed_form() -> None:
    z2 = 1.959963984540054**2
    for n in (10, 128, 5000):
        assert tango(0, 0, n)[1] == pytest.approx(z2 / (n + z2), abs=1e-9)


def test_tango_covers_as_often_as_it_says() -> None:
    """A light simulation: paired answers with known disagreement, 95 % and 80 % intervals."""
    rng = np.random.default_rng(0)
    for lost, gained, n in ((0.05, 0.03, 200), (0.10, 0.01, 100), (0.02, 0.02, 600)):
        counts = rng.multinomial(n, [lost, gained, 1 - lost - gained], size=1500)
        for confidence, slack in ((0.95, 0.02), (0.80, 0.035)):
            known: dict[tuple[int, int], bool] = {}
            inside = 0
            for b, c, _ in counts.tolist():
                if (b, c) not in known:
                    low, high = tango(b, c, n, confidence)
                    known[b, c] = low <= lost - gained <= high
                inside += known[b, c]
            assert inside / len(counts) == pytest.approx(confidence, abs=slack)


def test_paired_interval_counts_discordant_pairs() -> None:
    teacher = np.array([1] * 90 + [0] * 10, bool)
    specialist = teacher.copy()
    specialist[:4] = False
    specialist[-1] = True
    drop, low, high, method = paired_interval(teacher, specialist)
    assert drop == pytest.approx(0.03)
    assert (low, high) == tango(4, 1, 100)
    assert "Tango" in method
    with pytest.raises(ValueError, match="shapes"):
        paired_interval(teacher, specialist[:5])


@pytest.mark.parametrize("max_drop", [0.002, 0.01, 0.03, 0.2])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_smallest_passable_n_is_the_smallest(max_drop: float, confidence: float) -> None:
    n = smallest_passable_n(max_drop, confidence)
    assert tango(0, 0, n, confidence)[1] <= max_drop < tango(0, 0, n - 1, confidence)[1]


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


def test_bad_statistics_are_named() -> None:
    for call, match in (
        (lambda: wilson(3, 2), "3 of 2"),
        (lambda: wilson(0, 0), "0 of 0"),
        (lambda: wilson(1, 2, 1.0), "confidence"),
        (lambda: tango(2, 2, 3), "of 3"),
        (lambda: smallest_passable_n(0.0), "max_drop"),
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
