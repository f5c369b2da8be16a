"""What a recheck's figures say should be done with a champion: hold, re-specialize or roll back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from exports.drift import drift_text

Decision = Literal["hold", "respecialize", "rollback", "inconclusive"]


@dataclass
class _Grounds:
    """Reasons by what they speak for."""

    rollback: list[str] = field(default_factory=list)
    respecialize: list[str] = field(default_factory=list)
    inconclusive: list[str] = field(default_factory=list)
    hold: list[str] = field(default_factory=list)


def decide(facts: Mapping[str, Any], *, max_drop: float, equal_within: float) -> dict[str, Any]:
    """Decide what is to be done with a champion.

    - **rollback**: an earlier champion is more accurate (the paired interval of its gain lies above
      zero) and by more than counts as equal when versions are promoted (it reaches beyond
      `equal_within`): else a promotion for size or speed would be taken back at once. Or the
      champion is broken and an earlier one is not.
    - **respecialize**: otherwise, where the accuracy on new examples is below the first one by more
      than `max_drop` (the whole interval), or so for changed labels or against the teacher; where
      there are classes that it does not know; where inputs have drifted and the accuracy estimated
      for them is lower by more than `max_drop`.
    - **inconclusive**: otherwise, where one of those intervals reaches across `max_drop`.
    - **hold**: otherwise.

    Args:
        facts: what `tasks.recheck.examine` measured; a part that was not looked at is None.
        max_drop: the drop in accuracy that the recipe accepts.
        equal_within: the loss that counts as equal when versions are compared.

    Returns:
        {"decision", "reasons", "to"}: `to` is the version to roll back to, else None.
    """
    grounds = _Grounds()
    to = _earlier(facts, equal_within, grounds)
    if facts.get("labelled"):
        _labelled(facts["labelled"], max_drop, grounds)
    if facts.get("unlabelled"):
        _unlabelled(facts["unlabelled"], max_drop, grounds)
    for decision in ("rollback", "respecialize", "inconclusive"):
        if getattr(grounds, decision):
            break
    else:
        decision = "hold"
    told = [*grounds.rollback, *grounds.respecialize, *grounds.inconclusive, *grounds.hold]
    reasons = [*told, *facts.get("notes", [])] or ["nothing new to look at"]
    return {"decision": decision, "reasons": reasons, "to": to}


def _earlier(facts: Mapping[str, Any], equal_within: float, grounds: _Grounds) -> str | None:
    """The version to go back to: of those that are better, the one whose gain is surest."""
    if facts.get("broken"):
        grounds.rollback.append(f"the champion is broken: {facts['broken']}")
        return str(facts["sound"])
    rows = [(row, "new examples") for row in (facts.get("labelled") or {}).get("earlier", [])]
    if facts.get("line"):
        rows.append((facts["line"], "the champion's own test set"))
    better: list[tuple[float, str]] = []
    for row, where in rows:
        low, high = row["gain_ci"]
        text = (
            f"version {row['version']}, champion before, is {_points(low)} to {_points(high)} "
            f"points more accurate on {row['n']:,} examples ({where})"
        )
        if low > 0 and high > equal_within:
            better.append((low, str(row["version"])))
            grounds.rollback.append(text)
        elif low > 0:
            grounds.hold.append(f"{text}, within the {_points(equal_within)} that count as equal")
    return max(better)[1] if better else None


def _labelled(facts: Mapping[str, Any], max_drop: float, grounds: _Grounds) -> None:
    for name, count in facts["unknown"].items():
        grounds.respecialize.append(
            f"class {name!r} is unknown to it: {count:,} examples in {facts['source']}"
        )
    first = "below what it had at first"
    for key, what in (
        ("fresh", f"accuracy on {facts['n_fresh']:,} new examples is {{}} points {first}"),
        ("relabelled", "changed labels: accuracy on its own test set is {} points " + first),
        ("teacher", "on the new examples it is {} points below its teacher"),
    ):
        row = facts.get(key)
        if row is None:
            continue
        low, high = row["drop_ci"]
        text = what.format(f"{_points(low)} to {_points(high)}")
        bound = f"{_points(max_drop)} accepted"
        if low > max_drop:
            grounds.respecialize.append(f"{text}, {bound}")
        elif high <= max_drop:
            grounds.hold.append(f"{text}, at most the {bound}")
        elif key != "teacher":  # the teacher's comparison supports a finding, it opens no question
            needed = f"; {row['needed_text']}" if row.get("needed_text") else ""
            grounds.inconclusive.append(f"{text}, which cannot be told from the {bound}{needed}")
        else:
            grounds.hold.append(f"{text}, which cannot be told from the {bound}")
    if not facts["n_fresh"]:
        grounds.hold.append(f"no example of {facts['source']} is new")


def _unlabelled(facts: Mapping[str, Any], max_drop: float, grounds: _Grounds) -> None:
    found, estimate = facts["drift"], facts["estimate"]
    low, high = estimate["drop_ci"]
    guess = (
        f"estimated accuracy {estimate['accuracy']:.3f}, {_points(low)} to {_points(high)} points "
        f"below the test set's, {_points(max_drop)} accepted"
    )
    text = f"{drift_text(found)}; {guess}"
    if not found["drifted"]:
        grounds.hold.append(text)
    elif low > max_drop:
        grounds.respecialize.append(text)
    elif high > max_drop:
        grounds.inconclusive.append(text)
    else:
        grounds.hold.append(text)


def _points(share: float) -> str:
    return f"{100 * share:.1f}"


_WORDS = {
    "hold": "Hold",
    "respecialize": "Re-specialize",
    "rollback": "Roll back",
    "inconclusive": "Inconclusive",
}


def recheck_markdown(report: Mapping[str, Any]) -> str:
    """The decision and its reasons for a page."""
    word = _WORDS[report["decision"]]
    target = f" to version {report['to']}" if report.get("to") else ""
    lines = [f"# {report['model']}/{report['version']}: {word}{target}", ""]
    lines += [f"- {reason}" for reason in report["reasons"]]
    lines += ["", "| looked at | examples | figure | interval |", "|---|---|---|---|"]
    lines += [
        f"| {row['looked at']} | {row['examples']} | {row['figure']} | {row['interval']} |"
        for row in recheck_rows(report)
    ]
    acted = report.get("acted")
    if acted:
        lines += ["", f"Done: {acted['action']} ({'; '.join(acted['reasons'])})"]
    return "\n".join(lines) + "\n"


def recheck_rows(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """The figures as a table: looked at, examples, figure, interval."""
    return [
        {"looked at": name, "examples": f"{n:,}", "figure": figure, "interval": interval}
        for name, n, figure, interval in _figures(report)
    ]


def _figures(report: Mapping[str, Any]) -> Iterator[tuple[str, int, str, str]]:
    first, labelled = report.get("first"), report.get("labelled") or {}
    if first:
        yield "accuracy at first", first["n"], f"{first['accuracy']:.3f}", ""
    for key, name in (
        ("fresh", "new examples: accuracy, drop"),
        ("relabelled", "changed labels: accuracy, drop"),
        ("teacher", "teacher on new examples: accuracy, drop"),
    ):
        row = labelled.get(key)
        if row:
            figure = f"{row['accuracy']:.3f}, {_points(row['drop'])} points"
            yield name, row["n"], figure, _interval(row["drop_ci"])
    line = [report["line"]] if report.get("line") else []
    for row in [*labelled.get("earlier", []), *line]:
        name = f"version {row['version']} against it: gain"
        yield name, row["n"], f"{_points(row['gain'])} points", _interval(row["gain_ci"])
    unlabelled = report.get("unlabelled")
    if unlabelled:
        found, estimate = unlabelled["drift"], unlabelled["estimate"]
        told = f"{found['ks']:.2f} for {found['ks_class']}"
        yield "no labels: distance of a class probability", found["n"], told, ""
        moved = f"{found['shares_moved']:.0%}"
        yield "no labels: answers that moved to other classes", found["n"], moved, ""
        figure = f"{estimate['accuracy']:.3f}, {_points(estimate['drop'])} points"
        name = "no labels: estimated accuracy, drop"
        yield name, found["n"], figure, _interval(estimate["drop_ci"])


def _interval(bounds: tuple[float, float]) -> str:
    low, high = bounds
    return f"{_points(low)} to {_points(high)}"
