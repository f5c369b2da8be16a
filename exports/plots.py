"""The pictures of a run: the trade-off, the classes, the calibration, and a sweep's front."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from exports.card import ORDER
from exports.plot_calibration import calibration_figure
from exports.plot_classes import per_class_figure
from exports.plot_front import front_figure
from exports.plot_style import MARKERS, Palette, headline, new_figure, plain_axes, png, themed
from exports.verdict import wilson

__all__ = ["card_pictures", "sweep_pictures"]

_APART = 0.012  # of the widest cost


def card_pictures(
    report: Mapping[str, Any], sweep: Mapping[str, Any] | None = None
) -> dict[str, bytes]:
    """Draw every picture of the card that the report has the numbers for.

    Returns:
        PNG by file name, as `card_markdown` refers to them: tradeoff.png, per-class.png,
        calibration.png, front.png; and each again as NAME-dark.png, for pages on a dark ground.
    """
    found = {}
    accuracy = report.get("accuracy") or {}
    for suffix, dark in (("", False), ("-dark", True)):
        with themed(dark) as colours:
            found[f"tradeoff{suffix}.png"] = png(_tradeoff_figure(report, colours))
            if accuracy.get("per_class"):
                found[f"per-class{suffix}.png"] = png(per_class_figure(report, colours))
            if accuracy.get("calibration"):
                found[f"calibration{suffix}.png"] = png(calibration_figure(report, colours))
    if sweep and sweep.get("points"):
        found |= sweep_pictures(sweep)
    return found


def sweep_pictures(sweep: Mapping[str, Any]) -> dict[str, bytes]:
    """Draw the front for light and for dark pages: front.png, front-dark.png."""
    found = {}
    for suffix, dark in (("", False), ("-dark", True)):
        with themed(dark) as colours:
            found[f"front{suffix}.png"] = png(front_figure(sweep, colours))
    return found


def _tradeoff_figure(report: Mapping[str, Any], colours: Palette) -> Figure:
    """Draw the picture of a report (schema 1).

    Two panels share the accuracy axis: milliseconds to the left, megabytes to the right, both from
    zero, so that a distance is a saving. The band is the drop that the recipe accepts, where the
    report tells it (`accuracy.max_drop`). A model without accuracy (a generalist that does not know
    the classes) is a dotted line at its cost. Models of equal cost stand a little apart.
    """
    figure = new_figure(9.0, 4.6)
    left, right = figure.subplots(1, 2, sharey=True)
    n = report["task"]["test"]["n"]
    confidence = report["accuracy"]["confidence"]
    for axes, key, unit in ((left, "latency_ms", 1.0), (right, "bytes", 1e-6)):
        costs = {
            name: report["models"][name][key] * unit
            for name in ORDER
            if (report["models"].get(name) or {}).get(key) is not None
        }
        widest = max(costs.values(), default=1.0)
        drawn: list[float] = []
        for name, cost in costs.items():
            accuracy, colour = report["models"][name].get("accuracy"), colours.model(name)
            if accuracy is None:
                axes.axvline(cost, color=colour, ls=":", label=f"{name} (other classes)")
                continue
            near = sum(abs(cost - other) < _APART * widest for other in drawn)
            drawn.append(cost)
            low, high = wilson(round(accuracy * n), n, confidence)
            axes.errorbar(
                [cost + _APART * widest * near],
                [accuracy],
                yerr=[[max(accuracy - low, 0.0)], [max(high - accuracy, 0.0)]],
                fmt=MARKERS[name],
                color=colour,
                markersize=9 if name == "specialist" else 7,
                capsize=4,
                label=name,
            )
        _accepted(axes, report, colours)
        axes.set_xlim(0, 1.15 * widest)
        axes.margins(y=0.12)
        plain_axes(axes)
    speed = report.get("speed") or {}
    threads = speed.get("threads", 1)
    left.set_xlabel(
        f"latency in ms (batch {speed.get('batch', 1)}, {threads} thread{'s' * (threads != 1)})"
    )
    right.set_xlabel("ONNX file in MB")
    left.set_ylabel(f"accuracy, {confidence:.0%} interval (n = {n})")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    headline(figure, f"{report['task']['name']}: {report['verdict']['status']}")
    return figure


def _accepted(axes: Axes, report: Mapping[str, Any], colours: Palette) -> None:
    """Shade the drop below the teacher that the recipe accepts."""
    allowed = report["accuracy"].get("max_drop")
    teacher = report["models"].get("teacher", {}).get("accuracy")
    if allowed is not None and teacher is not None:
        axes.axhspan(
            teacher - allowed,
            teacher,
            color=colours.teacher,
            alpha=0.12,
            lw=0,
            label=f"accepted drop ({allowed:g})",
        )
