"""A sweep as Markdown and as one HTML page: every point, the front, and which one was picked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exports.card_head import sweep_head_html
from exports.markdown import (
    markdown_table,
    megabytes,
    millions,
    milliseconds,
    plain,
    plural,
    points,
    points_range,
    share,
    times,
)
from exports.page import page_html

_COSTS = {"latency_ms": "time", "bytes": "bytes", "nonzero": "nonzeros"}


def sweep_markdown(sweep: Mapping[str, Any]) -> str:
    """Return a sweep (the content of sweep.json) as Markdown; its picture is front.png."""
    return "\n\n".join([f"# {plain(sweep['name'])}: sweep", _told(sweep), _body(sweep)]) + "\n"


def sweep_page(sweep: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """Return a sweep as one HTML page that needs nothing else.

    Args:
        pictures: PNG by name, as `exports.plots.sweep_pictures` draws them.
    """
    head = sweep_head_html(sweep, _told(sweep))
    return page_html(f"{sweep['name']}: sweep", head, _body(sweep), pictures)


def sweep_section(sweep: Mapping[str, Any] | None) -> str:
    """Return the sweep as a section of the card of one of its points."""
    if not sweep or not sweep.get("points"):
        return ""
    return "\n\n".join([_told(sweep), _picture(sweep), points_table(sweep), _how_to_read()])


def points_table(sweep: Mapping[str, Any]) -> str:
    """Return the points in the order in which they were tested, the teacher first."""
    teacher = sweep.get("teacher") or {}
    rows = []
    if teacher.get("accuracy") is not None:
        costs = [milliseconds(teacher.get("latency_ms")), "", megabytes(teacher.get("bytes"))]
        rows.append(["teacher", _accuracy(teacher), "", "", *costs, "", ""])
    for point in sorted(sweep["points"], key=lambda point: point["order"]):
        name = plain(point["point"])
        front = [told for key, told in _COSTS.items() if (point.get("front") or {}).get(key)]
        rows.append(
            [
                f"**{name}** (picked)" if point["point"] == sweep.get("picked") else name,
                _accuracy(point),
                f"{points(point['drop'])} ({points_range(point['drop_ci'])})",
                str(point["status"]),
                milliseconds(point["latency_ms"]),
                times(point.get("ratio")),
                megabytes(point["bytes"]),
                millions(point.get("nonzero")),
                ", ".join(front),
            ]
        )
    header = ["point", "accuracy", "drop (points)", "verdict", "latency", "faster", "size"]
    return markdown_table([*header, "nonzero", "on the front of"], rows)


def _accuracy(facts: Mapping[str, Any]) -> str:
    low, high = facts.get("accuracy_ci") or (None, None)
    return share(facts["accuracy"]) + (f" ({share(low)} to {share(high)})" if low else "")


def _told(sweep: Mapping[str, Any]) -> str:
    """Return what was picked and why."""
    tested = plural(len(sweep["points"]), "point")
    if sweep.get("picked"):
        told = f"Of {tested}, **{plain(sweep['picked'])}** is the smallest that passes"
    else:
        told = f"Of {tested}, none passes"
    why = plain(sweep.get("picked_why") or "").rstrip(".")
    return (
        f"{told} (a drop of at most {points(sweep['max_drop'])} points with "
        f"{sweep['confidence']:.0%} confidence). " + (f"{why[:1].upper()}{why[1:]}." if why else "")
    ).strip()


def _picture(sweep: Mapping[str, Any]) -> str:
    return (
        "![Accuracy with intervals of every point against latency, file size and nonzero weights, "
        "with the Pareto front; the table has the numbers.](front.png)"
    )


def _how_to_read() -> str:
    return (
        "A point is on the front of a cost where nothing measured is both cheaper and more "
        "accurate. Points are tested one by one, the nearest to the teacher on held-out examples "
        "first: an order that was fixed before the test set was looked at. Testing stops at the "
        "first that does not pass, so that the chance of picking one that should have failed stays "
        "what the confidence says (fixed-sequence testing; Angelopoulos et al. 2021, Learn then "
        "Test). Of those that passed, the fastest is picked."
    )


def _body(sweep: Mapping[str, Any]) -> str:
    """Return the page below its head."""
    parts = [
        "## The front",
        _picture(sweep),
        "## The points",
        points_table(sweep),
        _how_to_read(),
    ]
    speed, seconds = sweep.get("speed") or {}, sweep.get("seconds") or {}
    if speed:
        threads = speed.get("threads", 1)
        parts += [
            "## How it was measured",
            f"Times are medians on {plain(speed.get('runtime', 'cpu'))}, batch "
            f"{speed.get('batch', 1)}, {plural(threads, 'thread')}; faster means against the "
            "generalist. Accuracy, time and size are read from the exported ONNX files.",
        ]
    if seconds:
        parts += [
            "## What it took",
            f"{seconds['total']:,.0f} s. With nothing reused from earlier runs, what the points "
            "share (the teacher, its statistics, the latency table) takes "
            f"{seconds['shared']:,.0f} s and the points themselves {seconds['points']:,.0f} s.",
        ]
    return "\n\n".join(parts)
