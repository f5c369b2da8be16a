"""Draw how often the models are right when they say how sure they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from exports.plot_style import (
    MARKERS,
    Palette,
    headline,
    new_figure,
    plain_axes,
)
from exports.verdict import wilson


def calibration_figure(report: Mapping[str, Any], colours: Palette) -> Figure:
    """Draw the reliability diagrams of teacher and specialist.

    Reads `accuracy.calibration`: by model an expected calibration error `ece` with its interval
    and a `curve`, a point a bin of examples of like confidence. A point under the diagonal: the
    model is surer than it is right (Guo et al. 2017, On Calibration of Modern Neural Networks).
    """
    facts = report["accuracy"]["calibration"]
    confidence = report["accuracy"].get("confidence", 0.95)
    names = [name for name in ("teacher", "specialist") if facts.get(name)]
    figure = new_figure(9.0, 4.7)
    panels = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
    lowest = 1.0
    for axes, name in zip(panels, names, strict=True):
        lowest = min(lowest, _panel(axes, name, facts[name], confidence, colours))
    lowest = max(0.0, lowest - 0.04)
    for axes in panels:
        axes.plot([0, 1], [0, 1], color=colours.soft, lw=1, ls="--", zorder=1)
        axes.set_xlim(lowest, 1.02)
        axes.set_ylim(lowest, 1.02)
        axes.set_aspect("equal")
        axes.set_xlabel("how sure it says it is")
        plain_axes(axes)
    panels[0].set_ylabel(f"share that is right, {confidence:.0%} interval")
    headline(figure, "Below the dashed line: surer than right")
    return figure


def _panel(
    axes: Axes, name: str, facts: Mapping[str, Any], confidence: float, colours: Palette
) -> float:
    """Draw one model; returns the lowest value drawn."""
    curve = [point for point in facts["curve"] if point["n"]]
    sure = [point["confidence"] for point in curve]
    right = [point["accuracy"] for point in curve]
    ends = [
        wilson(round(point["accuracy"] * point["n"]), point["n"], confidence) for point in curve
    ]
    axes.errorbar(
        sure,
        right,
        yerr=[
            [max(0.0, y - low) for y, (low, _) in zip(right, ends, strict=True)],
            [max(0.0, high - y) for y, (_, high) in zip(right, ends, strict=True)],
        ],
        fmt=f"{MARKERS[name]}-",
        color=colours.model(name),
        ecolor=colours.model(name),
        markersize=5.5,
        lw=1.2,
        elinewidth=1,
        capsize=2.5,
    )
    low, high = facts["ece_ci"]
    axes.set_title(
        f"{name}: off by {100 * facts['ece']:.1f} points on average "
        f"({100 * low:.1f} to {100 * high:.1f})",
        loc="left",
        fontsize=9.5,
    )
    return min([*sure, *(low for low, _ in ends)], default=0.0)
