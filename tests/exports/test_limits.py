"""Shares, drops and sentences against small cases worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from exports.corruptions import corruptions
from exports.limits import confidences, corruption_facts, limits_text, outside_facts
from exports.verdict import paired_interval, wilson


def logits_of(confidence: list[float]) -> np.ndarray:
    """Two-class logits with these largest softmaxes."""
    p = np.array(confidence)
    return np.stack([np.log(p), np.log(1 - p)], axis=1).astype(np.float32)


INSIDE = {"teacher": logits_of([0.99, 0.95, 0.8, 0.7]), "specialist": logits_of([0.92] * 3 + [0.6])}
OUTSIDE = {"teacher": logits_of([0.6, 0.75, 0.91]), "specialist": logits_of([0.6, 0.55, 0.95])}


def facts(**changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"source": "elsewhere", "threshold": 0.9, "confidence": 0.95}
    return outside_facts(INSIDE, OUTSIDE, **settings | changes)


def test_shares_and_areas_by_hand() -> None:
    found = facts()
    assert (found["source"], found["n"], found["n_inside"]) == ("elsewhere", 3, 4)
    assert found["sure"] == {"teacher": 1 / 3, "specialist": 1 / 3}
    assert found["sure_ci"]["teacher"] == list(wilson(1, 3, 0.95))
    assert found["inside_sure"] == {"teacher": 0.5, "specialist": 0.75}
    # won pairs of 12: 0.99 and 0.95 win 3 each, 0.8 wins 2, 0.7 wins 1
    assert found["auroc"]["teacher"] == pytest.approx(9 / 12)
    # 0.92 wins 2 each, 0.6 wins one and ties with one
    assert found["auroc"]["specialist"] == pytest.approx(7.5 / 12)
    assert found["auroc_drop"] == pytest.approx(1.5 / 12)
    low, high = found["auroc_drop_ci"]
    assert low < 1.5 / 12 < high
    assert facts(threshold=0.94)["sure"] == {"teacher": 0.0, "specialist": pytest.approx(1 / 3)}


def test_the_confidence_that_keeps_the_tasks_inputs() -> None:
    own = np.linspace(0.51, 0.99, 100)
    inside = {name: logits_of(own.tolist()) for name in ("teacher", "specialist")}
    outside = {name: logits_of([0.52, 0.525, 0.53, 0.6]) for name in ("teacher", "specialist")}
    found = outside_facts(inside, outside, source="", threshold=0.9, confidence=0.95)
    kept = found["keeping"]["specialist"]
    assert (own >= kept["confidence"] - 1e-6).sum() == 95
    assert kept["outside"] == 0.25


def test_answers_too_sure_for_floating_point_are_still_told_apart() -> None:
    inside = np.array([[0.0, 60.0], [0.0, 50.0]], np.float32)
    outside = np.array([[0.0, 45.0], [40.0, 0.0]], np.float32)
    assert confidences(inside).tolist() == [1.0, 1.0]
    both = [{name: x for name in ("teacher", "specialist")} for x in (inside, outside)]
    found = outside_facts(*both, source="", threshold=0.9, confidence=0.95)
    assert found["auroc"]["specialist"] == 1
    assert confidences(np.array([[1e4, -1e4, 0.0], [5.0, 5.0, 5.0]])) == pytest.approx([1, 1 / 3])


def test_logits_that_are_not_numbers_are_refused() -> None:
    broken = {**OUTSIDE, "specialist": np.full((3, 2), np.nan)}
    with pytest.raises(ValueError, match="finite"):
        outside_facts(INSIDE, broken, source="", threshold=0.9, confidence=0.95)


def answers(classes: list[int]) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[classes]


def test_what_a_corruption_costs_by_hand() -> None:
    labels = np.array([0, 1, 2, 0, 1])
    clean = {"teacher": answers([0, 1, 2, 0, 1]), "specialist": answers([0, 1, 2, 0, 0])}
    bad = {"teacher": answers([0, 1, 2, 1, 0]), "specialist": answers([1, 1, 0, 0, 0])}
    mild, strong = corruptions("text")
    found = corruption_facts(labels, clean, [(mild, clean), (strong, bad)], confidence=0.9)
    assert found["clean"] == {"teacher": 1.0, "specialist": 0.8, "n": 5}
    first, second = found["corruptions"]
    assert (first["kind"], first["level"], first["n"]) == ("typos", 1, 5)
    assert first["what"] == mild.what
    assert (first["teacher_drop"], first["specialist_drop"]) == (0.0, 0.0)
    assert (second["teacher"], second["specialist"]) == (0.6, 0.4)
    assert second["teacher_drop"] == pytest.approx(0.4)
    assert second["specialist_drop"] == pytest.approx(0.4)
    assert second["drop"] == pytest.approx(0.2)
    _, low, high, _ = paired_interval([1, 1, 1, 0, 0], [0, 1, 0, 1, 0], 0.9)
    assert second["drop_ci"] == [low, high]


def limits(**changes: Any) -> dict[str, Any]:
    outside = {
        "source": "the 3 other classes of test.parquet",
        "n": 200,
        "n_inside": 600,
        "threshold": 0.9,
        "auroc": {"teacher": 0.9, "specialist": 0.8},
        "auroc_ci": {"teacher": [0.88, 0.92], "specialist": [0.77, 0.83]},
        "sure": {"teacher": 0.1, "specialist": 0.004},
        "inside_sure": {"teacher": 1.0, "specialist": 0.62},
        "auroc_drop": 0.1,
        "auroc_drop_ci": [0.07, 0.13],
        "keeping": {"specialist": {"confidence": 0.38, "outside": 0.0}},
    }
    rows = [
        {
            "kind": "noise",
            "level": level,
            "what": f"noise {level}",
            "n": 100,
            "teacher": 0.85,
            "specialist": 0.8 - 0.1 * level,
            "teacher_drop": 0.05,
            "specialist_drop": 0.02 + 0.1 * level,
            "drop": 0.05 + 0.1 * level,
            "drop_ci": [0.1 * level - 0.15, 0.3],
        }
        for level in (1, 2)
    ]
    clean = {"teacher": 0.9, "specialist": 0.82, "n": 100}
    told = {"confidence": 0.95, "outside": outside, "clean": clean, "corruptions": rows}
    return told | changes


def test_the_sentences_say_what_the_numbers_say() -> None:
    text = " ".join(limits_text(limits()))
    for words in (
        "There is no answer 'none of these'",
        "200 inputs from outside the task (the 3 other classes of test.parquet)",
        "more than 90% sure of its answer to 0.4% of them, the teacher to 10%",
        "own 600 test examples that holds for 62% (the teacher: all)",
        "only roughly",
        "80.0% of the pairs (AUROC; 95% interval 77.0% to 83.0%",
        "The teacher's does in 90.0%. Compression made it measurably worse at this.",
        "less than 38% confidence keeps 95% of the task's own inputs and still answers none of",
        "Of 100 test examples the specialist gets 82.0% right as they are (the teacher: 90.0%)",
        "noise 1, 70.0% (85.0%); noise 2, 60.0% (85.0%)",
        "costs the specialist most is noise 2: 22.0 points of accuracy; the teacher loses 5.0",
        "under noise 2 by 25.0 points (5.0 to 30.0)",
    ):
        assert words in text, words
    assert "noise 1 by" not in text


@pytest.mark.parametrize(
    ("interval", "words"),
    [([-0.01, 0.02], "can be chance"), ([-0.05, -0.01], "better at this than the teacher")],
)
def test_a_difference_is_only_told_where_it_is_measured(interval: list[float], words: str) -> None:
    outside = limits()["outside"] | {"auroc_drop_ci": interval}
    text = " ".join(limits_text(limits(outside=outside)))
    assert words in text and "measurably worse" not in text


def test_what_is_missing_is_not_told() -> None:
    assert limits_text(None) == [] == limits_text({})
    assert all("AUROC" not in line for line in limits_text(limits(outside=None)))
    assert len(limits_text(limits(corruptions=[]))) == 3
    plain = {k: v for k, v in limits()["outside"].items() if not k.startswith(("auroc_d", "keep"))}
    assert len(limits_text({"outside": plain, "corruptions": []})) == 2
