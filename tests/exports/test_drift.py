"""Drift on draws whose distribution is known: false alarms, power, and what is estimated."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from exports.drift import drift, drift_text, estimated_drop
from exports.reference import log_softmax

CLASSES = ("ant", "bee", "cat", "dog")


def logits(
    n: int, random: np.random.Generator, *, sharpness: float = 3.0, shares: object = None
) -> tuple[np.ndarray, np.ndarray]:
    """A model that knows its probabilities: labels are drawn from its own softmax."""
    found = random.normal(0, 1, (n, len(CLASSES))) * sharpness
    if shares is not None:
        found += np.log(np.asarray(shares))
    chances = np.exp(log_softmax(found))
    labels = (random.random((n, 1)) > chances.cumsum(axis=1)).sum(axis=1)
    return log_softmax(found), labels.clip(0, len(CLASSES) - 1)


def test_false_alarms_and_power() -> None:
    random = np.random.default_rng(1)
    alarms, draws = {"same": 0, "softer": 0, "shifted": 0}, 150
    for _ in range(draws):
        before, _ = logits(400, random)
        for name, seen in (
            ("same", logits(300, random)[0]),
            ("softer", logits(300, random, sharpness=1.5)[0]),
            ("shifted", logits(300, random, shares=[8, 1, 1, 1])[0]),
        ):
            alarms[name] += drift(before, seen, CLASSES)["drifted"]
    # 150 draws of at most 5 %: 14 and more would be one in a hundred
    assert alarms["same"] <= stats.binom.ppf(0.99, draws, 0.05)
    assert alarms["softer"] >= 0.9 * draws
    assert alarms["shifted"] >= 0.9 * draws


def test_without_the_floors_the_level_is_the_tests_own() -> None:
    random, draws = np.random.default_rng(2), 300
    found = [
        drift(
            logits(300, random)[0], logits(300, random)[0], CLASSES,
            confidence=0.8, ks_floor=0, share_floor=0,
        )["drifted"]
        for _ in range(draws)
    ]  # fmt: skip
    # Holm over dependent tests is careful, but not blind: with 20 % asked, some there are
    assert 0.05 * draws <= sum(found) <= stats.binom.ppf(0.99, draws, 0.2)


def test_many_inputs_do_not_make_a_small_difference_drift() -> None:
    random = np.random.default_rng(3)
    before, seen = logits(20_000, random)[0], logits(20_000, random, sharpness=2.8)[0]
    found = drift(before, seen, CLASSES)
    assert found["p"] < 1e-3 and found["ks"] < 0.1 and not found["drifted"]


def test_predicted_shares_are_told() -> None:
    random = np.random.default_rng(4)
    before, seen = logits(900, random)[0], logits(700, random, shares=[20, 1, 1, 1])[0]
    found = drift(before, seen, CLASSES)
    counts = np.bincount(seen.argmax(axis=1), minlength=4) / 700
    assert [row["now"] for row in found["shares"]] == pytest.approx(counts)
    assert sum(row["before"] for row in found["shares"]) == pytest.approx(1)
    assert found["drifted"] and found["shares_moved"] > 0.1
    assert "drift in 700 inputs" in drift_text(found) and "'ant'" in drift_text(found)


def test_two_classes_are_one_test() -> None:
    random = np.random.default_rng(5)
    before = log_softmax(random.normal(0, 2, (300, 2)))
    seen = log_softmax(random.normal(0, 2, (300, 2)) + np.array([1.5, 0]))
    found = drift(before, seen, ("no", "yes"))
    one = stats.ks_2samp(np.exp(before[:, 0]), np.exp(seen[:, 0]), method="asymp")
    assert found["ks"] == pytest.approx(one.statistic) and found["drifted"]


def test_estimated_accuracy_is_near_the_true_one_and_its_interval_covers() -> None:
    """A calibrated model, softer on new inputs: confidence means what it meant, so it can tell."""
    random, covered, draws = np.random.default_rng(6), 0, 60
    truth = np.mean([_accuracy(*logits(20_000, random, sharpness=s)) for s in (2.0,) * 3])
    first = np.mean([_accuracy(*logits(20_000, random)) for _ in range(3)])
    for seed in range(draws):
        before, labels = logits(600, random)
        seen, _ = logits(500, random, sharpness=2.0)
        right = before.argmax(axis=1) == labels
        found = estimated_drop(before, right, seen, seed=seed, draws=400)
        assert found["drop"] == pytest.approx(found["first"] - found["accuracy"])
        # the one is exact for a calibrated model, the other takes it for worse than it is
        assert found["by_confidence"] == pytest.approx(first - truth, abs=0.07)
        assert found["by_threshold"] > first - truth
        covered += found["drop_ci"][0] <= first - truth <= found["drop_ci"][1]
    assert covered >= 0.85 * draws


def test_estimate_without_drift_is_the_first_accuracy() -> None:
    random, covered, draws = np.random.default_rng(7), 0, 60
    for seed in range(draws):
        before, labels = logits(300, random)
        right = before.argmax(axis=1) == labels
        found = estimated_drop(before, right, logits(400, random)[0], seed=seed, draws=400)
        covered += found["drop_ci"][0] <= 0 <= found["drop_ci"][1]
    assert covered >= 0.87 * draws


def test_noise_among_the_inputs_is_seen_by_both() -> None:
    """Half of the new inputs are noise on which it is as sure as on its most doubtful third."""
    random = np.random.default_rng(9)
    before, labels = logits(800, random)
    right = before.argmax(axis=1) == labels
    noise = logits(400, random, sharpness=0.8)[0]
    found = estimated_drop(before, right, np.vstack([logits(400, random)[0], noise]))
    assert found["drop_ci"][0] > 0.05


def test_a_model_that_is_always_right_or_always_wrong() -> None:
    before, _ = logits(50, np.random.default_rng(8))
    sure = estimated_drop(before, np.ones(50, bool), before)
    lost = estimated_drop(before, np.zeros(50, bool), before)
    assert sure["by_threshold"] == 0 and lost["by_threshold"] == 0
    assert sure["accuracy"] == 1 and lost["accuracy"] == 0


def test_shapes_that_do_not_fit() -> None:
    rows = np.zeros((5, 4), np.float32)
    for other in (np.zeros((5, 3)), np.zeros((0, 4)), np.zeros(4)):
        with pytest.raises(ValueError, match="drift: shapes"):
            drift(rows, other, CLASSES)
    with pytest.raises(ValueError, match="answers"):
        estimated_drop(rows, np.ones(4, bool), rows)


def _accuracy(found: np.ndarray, labels: np.ndarray) -> float:
    return float((found.argmax(axis=1) == labels).mean())
