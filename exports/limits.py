"""Limits of a specialist: how sure it is where it cannot be right, and what bad inputs cost it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from exports.auroc import METHOD, auroc, auroc_gap
from exports.corruptions import Corruption
from exports.verdict import paired_interval, wilson

Logits = Mapping[str, np.ndarray]
KEPT = 0.95  # of the task's own inputs, by the confidence that `keeping` tells
MODELS = ("teacher", "specialist")


def confidences(logits: np.ndarray) -> np.ndarray:
    """Return the largest softmax of each row of logits (N, K), float64 (N,)."""
    return 1 / (1 + _doubt(logits))


def outside_facts(
    inside: Logits, outside: Logits, *, source: str, threshold: float, confidence: float
) -> dict[str, Any]:
    """Return how sure teacher and specialist are of inputs outside the task.

    The score is the largest softmax (Hendrycks and Gimpel 2017, arXiv:1610.02136).

    Args:
        inside: logits (N, K) of 'teacher' and 'specialist' on the test set.
        outside: logits (M, K) of both on inputs of no class of the task.
        source: where those inputs are from, for a person.
        threshold: confidence above which an answer counts as sure.
        confidence: of the intervals.

    Returns:
        `limits.outside` of the report. `auroc` is the chance that an input of the task gets the
        higher confidence of the two; `auroc_drop` the teacher's minus the specialist's. `keeping`
        is the confidence that `KEPT` of the task's own inputs reach, with the share of the others
        that reach it too.

    Raises:
        ValueError: fewer than two inputs of either kind, or logits that are not numbers.
    """
    areas, facts = {}, {}
    for name in MODELS:
        own, foreign = _doubt(inside[name]), _doubt(outside[name])
        areas[name] = auroc(-own, -foreign)
        sure, own_sure = 1 / (1 + foreign) > threshold, 1 / (1 + own) > threshold
        facts[name] = {
            "auroc": areas[name].value,
            "auroc_ci": list(areas[name].interval(confidence)),
            "sure": float(sure.mean()),
            "sure_ci": list(wilson(int(sure.sum()), len(sure), confidence)),
            "inside_sure": float(own_sure.mean()),
            "keeping": _keeping(own, foreign),
        }
    gap, low, high = auroc_gap(areas["teacher"], areas["specialist"], confidence)
    return {
        "source": source,
        "n": len(outside["specialist"]),
        "n_inside": len(inside["specialist"]),
        "threshold": threshold,
        **{key: {name: facts[name][key] for name in MODELS} for key in facts["teacher"]},
        "auroc_drop": gap,
        "auroc_drop_ci": [low, high],
        "method": METHOD,
    }


def corruption_facts(
    labels: np.ndarray,
    clean: Logits,
    worse: Sequence[tuple[Corruption, Logits]],
    *,
    confidence: float,
) -> dict[str, Any]:
    """Return what each corruption costs teacher and specialist on the same examples.

    Args:
        labels: true classes (N,).
        clean: logits (N, K) of 'teacher' and 'specialist' on the examples as they are.
        worse: each corruption with both models' logits under it.
        confidence: of the intervals.

    Returns:
        {"clean", "corruptions"} of the report's limits. `teacher_drop` and `specialist_drop` are
        accuracy lost against clean; `drop` is the teacher's accuracy minus the specialist's there.

    Raises:
        ValueError: no examples, or numbers of rows that differ.
    """
    labels = np.asarray(labels)
    before = {name: clean[name].argmax(1) == labels for name in MODELS}
    rows = []
    for corruption, logits in worse:
        right = {name: logits[name].argmax(1) == labels for name in MODELS}
        drop, low, high, _ = paired_interval(right["teacher"], right["specialist"], confidence)
        rows.append(
            {
                "kind": corruption.kind,
                "level": corruption.level,
                "what": corruption.what,
                "n": len(labels),
                **{name: float(right[name].mean()) for name in MODELS},
                **{
                    f"{name}_drop": float(before[name].mean() - right[name].mean())
                    for name in MODELS
                },
                "drop": drop,
                "drop_ci": [low, high],
            }
        )
    known = {name: float(before[name].mean()) for name in MODELS}
    return {"clean": {**known, "n": len(labels)}, "corruptions": rows}


def limits_text(limits: Mapping[str, Any] | None) -> list[str]:
    """Return the report's `limits` in plain words, a paragraph each; nothing of what is missing."""
    if not limits:
        return []
    told = []
    if limits.get("outside"):
        told += _outside_text(limits["outside"], limits.get("confidence", 0.95))
    if limits.get("corruptions"):
        told += _corruption_text(limits["clean"], limits["corruptions"])
    return told


def _doubt(logits: np.ndarray) -> np.ndarray:
    """Return (1 - p) / p of the largest softmax p, (N,): it does not round to a tie near p = 1."""
    scaled = np.asarray(logits, np.float64)
    others = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    others[np.arange(len(others)), scaled.argmax(axis=1)] = 0
    return others.sum(axis=1)


def _keeping(own: np.ndarray, foreign: np.ndarray) -> dict[str, float]:
    """Return the confidence that `KEPT` of the task's inputs reach, and how many others do."""
    most = np.sort(own)[int(np.ceil(KEPT * len(own))) - 1]
    return {"confidence": float(1 / (1 + most)), "outside": float((foreign <= most).mean())}


def _outside_text(outside: Mapping[str, Any], confidence: float) -> list[str]:
    """Return what a person must know before a stranger's input arrives."""
    sure, own, area = outside["sure"], outside["inside_sure"], outside["auroc"]
    low, high = outside["auroc_ci"]["specialist"]
    told = [
        f"There is no answer 'none of these': every input gets one of the task's classes. Shown "
        f"{outside['n']} inputs from outside the task ({outside['source']}), the specialist was "
        f"more than {100 * outside['threshold']:g}% sure of its answer to "
        f"{_share(sure['specialist'])} of them, the teacher to {_share(sure['teacher'])}. Of the "
        f"task's own {outside['n_inside']} test examples that holds for "
        f"{_share(own['specialist'])} (the teacher: {_share(own['teacher'])}).",
        f"The specialist's confidence tells the task's inputs from those "
        f"{_how_well(area['specialist'])}: of two inputs, one of each kind, the task's own gets "
        f"the higher confidence in {area['specialist']:.1%} of the pairs (AUROC; {confidence:.0%} "
        f"interval {low:.1%} to {high:.1%}; tossing a coin: 50%). The teacher's does in "
        f"{area['teacher']:.1%}. {_gap_text(outside)}",
    ]
    if "keeping" in outside:
        kept = outside["keeping"]["specialist"]
        told.append(
            f"A service that refuses answers of less than {kept['confidence']:.0%} confidence "
            f"keeps {KEPT:.0%} of the task's own inputs and still answers "
            f"{_share(kept['outside'])} of those from outside."
        )
    return told


def _share(part: float) -> str:
    """Return a share as a person says it; 'none' is none at all."""
    if part in (0, 1):
        return "all" if part else "none"
    return f"{part:.0%}" if 0.01 <= part <= 0.99 else f"{part:.1%}"


def _how_well(area: float) -> str:
    """Return an AUROC as a word."""
    bounds = ((0.95, "well"), (0.85, "fairly well"), (0.7, "only roughly"), (0.6, "badly"))
    return next((word for bound, word in bounds if area >= bound), "hardly at all")


def _gap_text(outside: Mapping[str, Any]) -> str:
    """Return whether compression made the confidence worse at this."""
    if "auroc_drop_ci" not in outside:
        return ""
    low, high = outside["auroc_drop_ci"]
    if low > 0:
        return "Compression made it measurably worse at this."
    if high < 0:
        return "It is measurably better at this than the teacher."
    return "That difference can be chance."


def _corruption_text(clean: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line of accuracies, what costs most, and where the teacher is measurably better."""
    each = "; ".join(
        f"{row['what']}, {row['specialist']:.1%} ({row['teacher']:.1%})" for row in rows
    )
    told = [
        f"Of {clean['n']} test examples the specialist gets {clean['specialist']:.1%} right as "
        f"they are (the teacher: {clean['teacher']:.1%}). The same examples made worse: {each}."
    ]
    hardest = max(rows, key=lambda row: row["specialist_drop"])
    if hardest["specialist_drop"] > 0:
        told.append(
            f"What costs the specialist most is {hardest['what']}: "
            f"{100 * hardest['specialist_drop']:.1f} points of accuracy; the teacher loses "
            f"{100 * hardest['teacher_drop']:.1f} to it."
        )
    behind = [
        f"{row['what']} by {100 * row['drop']:.1f} points ({100 * row['drop_ci'][0]:.1f} to "
        f"{100 * row['drop_ci'][1]:.1f})"
        for row in rows
        if row["drop_ci"][0] > 0
    ]
    told.append(
        f"The teacher is measurably more accurate, each interval taken by itself, under "
        f"{'; '.join(behind)}."
        if behind
        else "Under none of these is the teacher measurably more accurate."
    )
    return told
