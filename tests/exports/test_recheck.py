"""Decisions on figures: which of them speak for what, and in which order."""

from __future__ import annotations

from typing import Any

import pytest

from exports.recheck import decide, recheck_markdown, recheck_rows

DRIFT = {
    "n": 400, "ks": 0.3, "ks_class": "card", "p": 1e-9, "shares_moved": 0.2,
    "shares": [{"class": "card", "before": 0.3, "now": 0.5}],
}  # fmt: skip


def labelled(**changes: Any) -> dict[str, Any]:
    plain = {
        "source": "new.jsonl", "n_fresh": 200, "n_changed": 0, "unknown": {}, "fresh": None,
        "relabelled": None, "teacher": None, "earlier": [],
    }  # fmt: skip
    return {**plain, **changes}


def drop(low: float, high: float) -> dict[str, Any]:
    middle = (low + high) / 2
    return {"n": 200, "accuracy": 0.8, "drop": middle, "drop_ci": [low, high]}


def gain(low: float, high: float, version: str = "1") -> dict[str, Any]:
    return {"version": version, "n": 200, "gain": (low + high) / 2, "gain_ci": [low, high]}


def unlabelled(drifted: bool, low: float, high: float) -> dict[str, Any]:
    estimate = {"accuracy": 0.8, "drop": (low + high) / 2, "drop_ci": [low, high]}
    return {"drift": {**DRIFT, "drifted": drifted}, "estimate": estimate}


@pytest.mark.parametrize(
    ("facts", "decision"),
    [
        ({}, "hold"),
        ({"labelled": labelled(n_fresh=0)}, "hold"),
        ({"labelled": labelled(fresh=drop(-0.02, 0.03))}, "hold"),
        ({"labelled": labelled(fresh=drop(-0.02, 0.04))}, "hold"),
        ({"labelled": labelled(fresh=drop(0.01, 0.05))}, "inconclusive"),
        ({"labelled": labelled(fresh=drop(0.04, 0.05))}, "inconclusive"),
        ({"labelled": labelled(fresh=drop(0.041, 0.2))}, "respecialize"),
        ({"labelled": labelled(relabelled=drop(0.05, 0.2))}, "respecialize"),
        ({"labelled": labelled(relabelled=drop(-0.05, 0.2))}, "inconclusive"),
        ({"labelled": labelled(fresh=drop(0, 0.01), teacher=drop(0.05, 0.1))}, "respecialize"),
        ({"labelled": labelled(fresh=drop(0, 0.01), teacher=drop(0.01, 0.1))}, "hold"),
        ({"labelled": labelled(unknown={"fraud": 3})}, "respecialize"),
        ({"unlabelled": unlabelled(True, 0.05, 0.2)}, "respecialize"),
        ({"unlabelled": unlabelled(True, 0.01, 0.2)}, "inconclusive"),
        ({"unlabelled": unlabelled(True, 0.01, 0.02)}, "hold"),
        ({"unlabelled": unlabelled(False, 0.05, 0.2)}, "hold"),
        ({"line": gain(0.01, 0.05)}, "rollback"),
        ({"line": gain(-0.01, 0.05)}, "hold"),
        # better for sure, but within what counts as equal: it would be promoted away at once
        ({"line": gain(0.001, 0.02)}, "hold"),
        ({"broken": "it does not load", "sound": "1"}, "rollback"),
    ],
)
def test_one_figure_at_a_time(facts: dict[str, Any], decision: str) -> None:
    found = decide(facts, max_drop=0.04, equal_within=0.02)
    assert found["decision"] == decision and found["reasons"]
    assert found["to"] == ("1" if decision == "rollback" else None)


def test_an_earlier_champion_goes_before_a_new_one_and_the_surest_before_others() -> None:
    facts = {
        "labelled": labelled(
            fresh=drop(0.1, 0.2), earlier=[gain(0.02, 0.3, "2"), gain(0.05, 0.1, "1")]
        ),
        "unlabelled": unlabelled(True, 0.05, 0.2),
        "notes": ["a note"],
    }
    found = decide(facts, max_drop=0.04, equal_within=0.02)
    assert (found["decision"], found["to"]) == ("rollback", "1")
    assert "version 2" in found["reasons"][0] and found["reasons"][-1] == "a note"
    assert any("new examples is 10.0 to 20.0 points below" in reason for reason in found["reasons"])


def test_a_certain_fault_goes_before_a_doubt() -> None:
    facts = {
        "labelled": labelled(fresh=drop(0.01, 0.2), unknown={"fraud": 3}),
        "unlabelled": unlabelled(True, 0.01, 0.2),
    }
    assert decide(facts, max_drop=0.04, equal_within=0.02)["decision"] == "respecialize"


def test_the_page_tells_decision_figures_and_what_was_done() -> None:
    facts: dict[str, Any] = {
        "first": {"right": 700, "n": 800, "accuracy": 0.875},
        "labelled": labelled(fresh=drop(0.1, 0.2), earlier=[gain(0.05, 0.1)]),
        "unlabelled": unlabelled(True, 0.05, 0.2),
        "line": None,
    }
    report = {"model": "tiny", "version": "3", **facts}
    report |= decide(facts, max_drop=0.04, equal_within=0.02)
    report["acted"] = {"action": "rolled back", "reasons": ["tiny/3 was champion before"]}
    page = recheck_markdown(report)
    assert page.startswith("# tiny/3: Roll back to version 1\n")
    assert "| accuracy at first | 800 | 0.875 |" in page and "Done: rolled back" in page
    names = [row["looked at"] for row in recheck_rows(report)]
    assert len(names) == 6 and names[1].startswith("new examples")
    assert "5.0 to 10.0" in page
