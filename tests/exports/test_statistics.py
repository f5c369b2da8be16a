from __future__ import annotations

import numpy as np
import pytest

from exports.paired import paired_bounds
from exports.statistics import calibration_error, holm, mcnemar, per_class_drops, seeds_spread


def test_mcnemar_is_exact() -> None:
    # 1 and 7 discordant: 2 (C(8, 0) + C(8, 1)) / 2^8
    assert mcnemar(1, 7) == pytest.approx(18 / 256)
    assert mcnemar(7, 1) == mcnemar(1, 7)
    assert mcnemar(0, 0) == 1.0 and mcnemar(4, 4) == 1.0
    with pytest.raises(ValueError, match="-1 lost"):
        mcnemar(-1, 2)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_one_class_is_the_whole_test_set() -> None:
    teacher = np.array([1] * 40 + [0] * 10, bool)
    specialist = teacher.copy()
    specialist[:6] = False
    (row,), method = per_class_drops(np.zeros(50, int), teacher, specialist, ["a"])
    assert row["drop_ci"] == list(paired_bounds(6, 0, 50)[:2])
    assert row["p_adjusted"] == pytest.approx(2 / 2**6) and row["worse"]
    assert (row["n"], row["teacher"], row["specialist"]) == (50, 0.8, 0.68)
    assert "Sidak" in method


def test_many_classes_are_corrected_for() -> None:
    labels = np.repeat(np.arange(10), 50)
    teacher = np.ones(500, bool)
    specialist = teacher.copy()
    specialist[:6] = False  # six of class 0, enough alone (0.031) and not among ten
    specialist[100:112] = False  # twelve of class 2: 0.0005, enough among ten
    rows, _ = per_class_drops(labels, teacher, specialist, [str(k) for k in range(11)])
    assert [row["worse"] for row in rows] == [k == 2 for k in range(11)]
    assert rows[0]["p_adjusted"] == pytest.approx(9 * 2 / 2**6)
    assert rows[2]["p_adjusted"] == pytest.approx(10 * 2 / 2**12)
    low, high = rows[0]["drop_ci"]
    alone = paired_bounds(6, 0, 50)
    assert low < alone[0] and high > alone[1]
    assert rows[0]["drop_ci"] == pytest.approx(paired_bounds(6, 0, 50, 0.95**0.1)[:2])
    empty = rows[10]  # no test example: neither measured nor counted among the ten
    assert empty["n"] == 0 and empty["drop"] is None and empty["drop_ci"] is None
    better, _ = per_class_drops(labels, specialist, teacher, [str(k) for k in range(10)])
    assert not any(row["worse"] for row in better)


def test_labels_without_a_class_are_named() -> None:
    right = np.ones(3, bool)
    with pytest.raises(ValueError, match="labels up to 2, 2 classes"):
        per_class_drops(np.array([0, 1, 2]), right, right, ["a", "b"])
    with pytest.raises(ValueError, match="shapes"):
        per_class_drops(np.array([0, 1]), right, right, ["a", "b"])


def answers(sure: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities whose top answer is class 0, and labels that make it right or wrong."""
    return np.c_[sure, 1 - sure], np.where(right, 0, 1)


def test_a_constant_confidence_has_its_error_read_off() -> None:
    right = np.arange(1000) < 600
    found = calibration_error(*answers(np.full(1000, 0.8), right))
    assert found["curve"] == [{"confidence": pytest.approx(0.8), "accuracy": 0.6, "n": 1000}]
    assert found["ece"] == pytest.approx(0.2, abs=0.002)
    half = 1.96 * np.sqrt(0.6 * 0.4 / 1000)
    assert found["ece_ci"] == pytest.approx([0.2 - half, 0.2 + half], abs=0.003)
    assert found["confidence"] == pytest.approx(0.8) and found["accuracy"] == 0.6


def test_a_calibrated_model_is_not_found_wanting() -> None:
    random = np.random.default_rng(0)
    holds = above = 0
    for seed in range(40):
        sure = random.uniform(0.55, 0.99, 300)
        found = calibration_error(*answers(sure, random.random(300) < sure), seed=seed)
        holds += found["ece_ci"][0] == 0.0
        above += found["ece"] < sum(
            abs(p["accuracy"] - p["confidence"]) * p["n"] / 300 for p in found["curve"]
        )
    assert holds >= 35  # 97.5 % of them; a percentile bootstrap never
    assert above == 40  # the binned error's bias is taken off


def test_an_error_is_found_and_bins_are_equal() -> None:
    random = np.random.default_rng(1)
    sure = random.uniform(0.55, 0.99, 1000)
    given = answers(sure, random.random(1000) < sure - 0.15)
    found = calibration_error(*given)
    assert found["ece_ci"][0] > 0.1 and found["ece_ci"][0] < 0.15 < found["ece_ci"][1]
    assert [point["n"] for point in found["curve"]] == [100] * 10
    order = [point["confidence"] for point in found["curve"]]
    assert order == sorted(order)
    assert found == calibration_error(*given)
    shuffle = random.permutation(1000)
    again = calibration_error(given[0][shuffle], given[1][shuffle])
    assert again["curve"] == [pytest.approx(point) for point in found["curve"]]


def test_probabilities_that_are_none_are_named() -> None:
    with pytest.raises(ValueError, match="not probabilities"):
        calibration_error(np.array([[3.0, -1.0]]), np.array([0]))
    with pytest.raises(ValueError, match="shapes"):
        calibration_error(np.array([[0.5, 0.5]]), np.array([0, 1]))


def test_seeds_by_hand() -> None:
    random = np.random.default_rng(0)
    pairs = [(random.random(30) < 0.8, random.random(30) < 0.7) for _ in range(4)]
    drops = np.array([a.astype(int) - b for a, b in pairs])
    # the two-way layout as a regression: draws and examples as dummies
    rows, columns = np.indices(drops.shape)
    draw, example = (np.eye(4)[rows.ravel()], np.eye(30)[columns.ravel()])
    flat = drops.ravel().astype(float)

    def squares(design: np.ndarray) -> float:
        fit = design @ np.linalg.lstsq(design, flat, rcond=None)[0]
        return float(((flat - fit) ** 2).sum())

    both = squares(np.c_[draw, example])
    ms_draw, ms_example = (squares(example) - both) / 3, (squares(draw) - both) / 29
    ms_rest = both / 87
    t, z = 3.182446305284263, 1.959963984540054
    parts = t * t * ms_draw + z * z * max(0, ms_example - ms_rest)
    half = np.sqrt(max(parts, z * z * ms_example) / 120)
    found = seeds_spread(pairs)
    assert found["drop_mean"] == pytest.approx(drops.mean())
    assert found["drop_sd"] == pytest.approx(drops.mean(axis=1).std(ddof=1))
    assert found["drop_ci"] == pytest.approx([drops.mean() - half, drops.mean() + half])


def test_draws_that_agree_leave_the_examples_to_count() -> None:
    random = np.random.default_rng(2)
    pair = random.random(200) < 0.8, random.random(200) < 0.7
    drop = pair[0].astype(int) - pair[1]
    found = seeds_spread([pair] * 3)
    half = 1.959963984540054 * drop.std(ddof=1) / np.sqrt(200)
    assert found["drop_sd"] == 0
    assert found["drop_ci"] == pytest.approx([drop.mean() - half, drop.mean() + half])


def test_draws_that_happen_to_agree_in_the_mean_leave_an_interval() -> None:
    drops = np.zeros((2, 40), int)
    drops[0, :4], drops[1, 4:8] = (1, -1, 1, -1), (1, -1, 1, -1)
    found = seeds_spread([(row >= 0, row <= 0) for row in drops])
    half = 1.959963984540054 * np.sqrt(2 * drops.mean(axis=0).var(ddof=1) / 80)
    assert found["drop_ci"] == pytest.approx([-half, half]) and half > 0.04


def test_draws_that_cannot_be_compared_are_named() -> None:
    right = np.ones(3, bool)
    for draws in ([(right, right)], [(right, right), (right[:2], right[:2])]):
        with pytest.raises(ValueError, match="draws of shapes"):
            seeds_spread(draws)


def test_draws_that_never_differ_are_no_certainty() -> None:
    right = np.ones(100, bool)
    found = seeds_spread([(right, right), (right, right)])
    low, high = found["drop_ci"]
    assert found["drop_mean"] == 0.0
    assert (low, high) == pytest.approx(paired_bounds(0, 0, 100, 0.95)[:2])
    assert low < 0 < high
