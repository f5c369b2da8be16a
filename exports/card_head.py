"""The top of the HTML pages: name, verdict, the figures that matter, and the interval drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from exports.markdown import megabytes, milliseconds, points, share, times
from exports.page import inline_html

# Told by a sign and a word, never by the colour alone.
_SIGNS = {"pass": "✓", "fail": "✕", "inconclusive": "?"}


def head_html(report: Mapping[str, Any], introduction: str) -> str:
    """Return the head of the card's page. `introduction` is Markdown of one paragraph."""
    accuracy, models = report["accuracy"], report["models"]
    specialist, teacher = models["specialist"], models.get("teacher") or {}
    tiles = [
        (
            "accuracy",
            share(specialist["accuracy"]),
            f"teacher {share(teacher.get('accuracy'))}",
        ),
        _speed_tile(report),
        (
            "file",
            megabytes(specialist["bytes"]),
            f"{times((report.get('sparsity') or {}).get('bytes_ratio'))} smaller".lstrip(),
        ),
        ("one answer", milliseconds(specialist.get("latency_ms")), _where(report.get("speed"))),
    ]
    return (
        _title(report["task"]["name"], report["verdict"]["status"])
        + f'<p class="lead">{inline_html(introduction)}</p>\n'
        + _tiles(tiles)
        + _strip(accuracy)
    )


def sweep_head_html(sweep: Mapping[str, Any], told: str) -> str:
    """Return the head of a sweep's page. `told` is Markdown of one paragraph."""
    picked = next((p for p in sweep["points"] if p["point"] == sweep.get("picked")), None)
    head = _title(f"{sweep['name']}: sweep", "pass" if picked else "fail", "picked", "none passes")
    head += f'<p class="lead">{inline_html(told)}</p>\n'
    if picked is None:
        return head
    teacher = (sweep.get("teacher") or {}).get("accuracy")
    tiles = [
        ("picked", str(picked["point"]), f"of {len(sweep['points'])} points"),
        ("accuracy", share(picked["accuracy"]), f"teacher {share(teacher)}" if teacher else ""),
        ("faster", times(picked.get("ratio")), _range(picked.get("ratio_ci"))),
        ("file", megabytes(picked["bytes"]), f"{times(picked.get('bytes_ratio'))} smaller"),
    ]
    facts = {**picked, "max_drop": sweep["max_drop"], "confidence": sweep["confidence"]}
    return head + _tiles(tiles) + _strip(facts)


def _title(name: str, status: str, good: str = "", bad: str = "") -> str:
    """Return the heading with the verdict beside it."""
    kind = status if status in _SIGNS else "inconclusive"
    word = {"pass": good, "fail": bad}.get(kind) or status
    return (
        f'<div class="title"><h1>{escape(name)}</h1> <span class="badge {kind}">'
        f'<span aria-hidden="true">{_SIGNS[kind]}</span> {escape(word)}</span></div>\n'
    )


def _speed_tile(report: Mapping[str, Any]) -> tuple[str, str, str]:
    speed = report.get("speed") or {}
    return "faster", times(speed.get("ratio")), _range(speed.get("ratio_ci"))


def _range(ends: Sequence[float] | None) -> str:
    return f"{times(ends[0])} to {times(ends[1])}" if ends else ""


def _where(speed: Mapping[str, Any] | None) -> str:
    if not speed:
        return ""
    threads = speed.get("threads", 1)
    return f"{speed.get('runtime', 'cpu')}, {threads} thread{'' if threads == 1 else 's'}"


def _tiles(tiles: Sequence[tuple[str, str, str]]) -> str:
    """Return the figures that are known."""
    cells = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}"
        + (f"<small>{escape(note)}</small>" if note else "")
        + "</dd></div>"
        for label, value, note in tiles
        if value
    )
    return f'<dl class="tiles">{cells}</dl>\n'


def _strip(facts: Mapping[str, Any]) -> str:
    """Return the interval of the drop, drawn beside the largest drop that is accepted."""
    allowed = facts.get("max_drop")
    if allowed is None:
        return ""
    drop, (low, high) = facts["drop"], facts["drop_ci"]
    pad = 0.12 * (max(high, allowed) - min(low, 0.0)) or 0.01
    start, end = min(low, 0.0) - pad, max(high, allowed) + pad

    def at(value: float) -> str:
        return f"{100 * (value - start) / (end - start):.2f}%"

    def width(a: float, b: float) -> str:
        return f"{100 * (b - a) / (end - start):.2f}%"

    # beside its line, on the side where there is room
    side = ' class="before"' if (allowed - start) / (end - start) > 0.7 else ""
    label = (
        f"Drop in accuracy {points(drop)} points, interval {points(low)} to {points(high)}; "
        f"accepted: at most {points(allowed)}"
    )
    return (
        f'<figure class="strip"><div role="img" aria-label="{label}">'
        f'<i class="good" style="left:0;width:{width(start, allowed)}"></i>'
        f'<i class="zero" style="left:{at(0.0)}"></i>'
        f'<b class="before" style="left:{at(0.0)}">0</b>'
        f'<i class="bound" style="left:{at(allowed)}"></i>'
        f'<b{side} style="left:{at(allowed)}">at most {100 * allowed:g}</b>'
        f'<i class="bar" style="left:{at(low)};width:{width(low, high)}"></i>'
        f'<i class="dot" style="left:{at(drop)}"></i></div>'
        f"<figcaption>Accuracy lost against the teacher, in points: {points(drop)}, "
        f"{points(low)} to {points(high)} with {facts['confidence']:.0%} confidence. The verdict "
        "is a pass where the whole bar is inside the shaded range.</figcaption></figure>\n"
    )
