"""Draw a sweep: accuracy with intervals against latency, bytes and nonzeros, and the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from exports.plot_style import Palette, headline, new_figure, plain_axes

COSTS = {
    "latency_ms": ("latency in ms", 1.0),
    "bytes": ("ONNX file in MB", 1e-6),
    "nonzero": ("nonzero weights in millions", 1e-6),
}
# by the point's status: matplotlib's fill of a marker
_FILLS = {"pass": "full", "inconclusive": "left", "fail": "none"}
_SHAPES = ("o", "D", "^", "s", "v", "P")
_Style = tuple[str, str]  # a format's shape and colour


def front_figure(sweep: Mapping[str, Any], colours: Palette) -> Figure:
    """Draw the picture of a sweep (the content of sweep.json).

    A panel a cost, from zero, so that a distance is a saving. Formats are shapes; a full shape
    passed, a half one is inconclusive, an empty one failed. The step line is the Pareto front:
    nothing measured is both cheaper and more accurate. The picked point has a ring around it.
    """
    points: Sequence[Mapping[str, Any]] = sweep["points"]
    costs = [key for key in COSTS if all(point.get(key) is not None for point in points)]
    formats = list(dict.fromkeys(str(point["format"]) for point in points))
    tones = (colours.ink, colours.specialist, colours.pruned)
    styles = {
        name: (_SHAPES[at % len(_SHAPES)], tones[at % len(tones)])
        for at, name in enumerate(formats)
    }
    figure = new_figure(1.2 + 3.1 * max(1, len(costs)), 4.7)
    panels = figure.subplots(1, max(1, len(costs)), sharey=True, squeeze=False)[0]
    for axes, key in zip(panels, costs, strict=False):
        _panel(axes, key, sweep, styles, colours)
    panels[0].set_ylabel(f"accuracy, {sweep.get('confidence', 0.95):.0%} interval")
    figure.legend(
        handles=_legend(sweep, styles, colours), loc="outside lower center", ncols=5, fontsize=9
    )
    picked = sweep.get("picked")
    headline(
        figure,
        f"{sweep['name']}: {picked} is the smallest that passes"
        if picked
        else f"{sweep['name']}: no point passes",
    )
    return figure


def _panel(
    axes: Axes, key: str, sweep: Mapping[str, Any], styles: Mapping[str, _Style], colours: Palette
) -> None:
    """Draw accuracy against one cost."""
    unit, points = COSTS[key][1], sweep["points"]
    teacher = sweep.get("teacher") or {}
    if teacher.get("accuracy") is not None:
        axes.axhline(teacher["accuracy"], color=colours.teacher, lw=1.2)
        axes.axhspan(
            teacher["accuracy"] - sweep["max_drop"],
            teacher["accuracy"],
            color=colours.teacher,
            alpha=0.12,
            lw=0,
        )
    dense = (sweep.get("generalist") or {}).get(key)
    if dense is not None:
        axes.axvline(dense * unit, color=colours.generalist, ls=":")
    best = sorted((p for p in points if (p.get("front") or {}).get(key)), key=lambda p: p[key])
    axes.plot(
        [p[key] * unit for p in best],
        [p["accuracy"] for p in best],
        drawstyle="steps-post",
        color=colours.good,
        lw=1.6,
        alpha=0.8,
        zorder=1,
    )
    for point in points:
        _point(axes, point, point[key] * unit, styles[str(point["format"])], colours)
    picked = next((p for p in points if p["point"] == sweep.get("picked")), None)
    if picked is not None:
        at = picked[key] * unit, picked["accuracy"]
        axes.plot(*at, "o", ms=19, mfc="none", mec=colours.ink, mew=1.6, zorder=4)
        axes.annotate(
            str(picked["point"]),
            at,
            xytext=(-15, 13),  # up and left: of a front, nothing is cheaper and more accurate
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9,
            weight="bold",
            parse_math=False,
            zorder=5,
            path_effects=[withStroke(linewidth=3, foreground=colours.paper)],
        )
    widest = max([point[key] * unit for point in points] + ([dense * unit] if dense else []))
    axes.set_xlim(0, 1.08 * widest)
    axes.margins(y=0.08)
    axes.set_xlabel(COSTS[key][0])
    plain_axes(axes)


def _point(
    axes: Axes, point: Mapping[str, Any], cost: float, style: _Style, colours: Palette
) -> None:
    """Draw one point with its interval."""
    low, high = point["accuracy_ci"]
    shape, colour = style
    axes.errorbar(
        [cost],
        [point["accuracy"]],
        yerr=[[max(0.0, point["accuracy"] - low)], [max(0.0, high - point["accuracy"])]],
        fmt="none",
        ecolor=colour,
        elinewidth=0.8,
        alpha=0.4,
        zorder=2,
    )
    fill = _FILLS.get(point["status"], "none")
    axes.plot(
        [cost],
        [point["accuracy"]],
        shape,
        ms=7.5,
        mec=colour,
        mfc=colour if fill != "none" else colours.paper,
        mfcalt=colours.paper,
        fillstyle=fill if fill != "none" else "full",
        mew=1.3,
        zorder=3,
    )


def _legend(
    sweep: Mapping[str, Any], styles: Mapping[str, _Style], colours: Palette
) -> list[Line2D | Patch]:
    """Return what the shapes, fills and lines mean."""

    def mark(label: str, shape: str, **more: Any) -> Line2D:
        base = {"color": colours.ink, "mfc": colours.ink, "mec": colours.ink, "mew": 1.3}
        return Line2D([], [], ls="", marker=shape, ms=7, label=label, **{**base, **more})

    seen = {str(point["status"]) for point in sweep["points"]}
    entries: list[Line2D | Patch] = [
        mark(name, shape, color=tone, mfc=tone, mec=tone) for name, (shape, tone) in styles.items()
    ]
    fills = {
        "inconclusive": {"fillstyle": "left", "mfcalt": colours.paper},
        "fail": {"mfc": colours.paper},
    }
    entries += [mark(name, "o", **more) for name, more in fills.items() if name in seen]
    entries.append(Line2D([], [], color=colours.good, lw=1.6, label="Pareto front"))
    if (sweep.get("teacher") or {}).get("accuracy") is not None:
        entries.append(Line2D([], [], color=colours.teacher, lw=1.2, label="teacher"))
        label = f"accepted drop ({sweep['max_drop']:g})"
        entries.append(Patch(color=colours.teacher, alpha=0.12, lw=0, label=label))
    entries.append(Line2D([], [], color=colours.generalist, ls=":", label="generalist's cost"))
    return entries
