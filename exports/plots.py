"""Draw the trade-off: accuracy with its interval against latency and against size."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from exports.card import ORDER
from exports.verdict import wilson

# Okabe and Ito's colours: told apart by colour-blind readers and in greyscale.
_COLOURS = {
    "generalist": "#7f7f7f",
    "teacher": "#0072b2",
    "pruned": "#e69f00",
    "specialist": "#d55e00",
}
_MARKERS = {"generalist": "s", "teacher": "o", "pruned": "^", "specialist": "D"}
_APART = 0.012  # of the widest cost


def tradeoff_png(report: Mapping[str, Any], path: Path) -> None:
    """Write the picture of a report (schema 1) as PNG, in one step.

    Two panels share the accuracy axis: milliseconds to the left, megabytes to the right, both from
    zero, so that a distance is a saving. The band is the drop that the recipe accepts, where the
    report tells it (`accuracy.max_drop`). A model without accuracy (a generalist that does not know
    the classes) is a dotted line at its cost. Models of equal cost stand a little apart.
    """
    figure = Figure(figsize=(9.0, 4.6), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display and without pyplot's global state
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
            accuracy = report["models"][name].get("accuracy")
            if accuracy is None:
                axes.axvline(cost, color=_COLOURS[name], ls=":", label=f"{name} (other classes)")
                continue
            near = sum(abs(cost - other) < _APART * widest for other in drawn)
            drawn.append(cost)
            _point(axes, name, cost + _APART * widest * near, accuracy, n, confidence)
        _accepted(axes, report)
        axes.set_xlim(0, 1.15 * widest)
        axes.margins(y=0.12)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    speed = report.get("speed", {})
    left.set_xlabel(
        f"latency in ms (batch {speed.get('batch', 1)}, {speed.get('threads', 1)} thread)"
    )
    right.set_xlabel("ONNX file in MB")
    left.set_ylabel(f"accuracy, {confidence:.0%} interval (n = {n})")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    status = report["verdict"]["status"]
    figure.suptitle(f"{report['task']['name']}: {status}", x=0.01, ha="left", weight="bold")
    _write(figure, Path(path))


def _point(axes: Axes, name: str, cost: float, accuracy: float, n: int, confidence: float) -> None:
    """Draw one model with its interval."""
    low, high = wilson(round(accuracy * n), n, confidence)
    axes.errorbar(
        [cost],
        [accuracy],
        yerr=[[max(accuracy - low, 0.0)], [max(high - accuracy, 0.0)]],
        fmt=_MARKERS[name],
        color=_COLOURS[name],
        markersize=9 if name == "specialist" else 7,
        capsize=4,
        label=name,
    )


def _accepted(axes: Axes, report: Mapping[str, Any]) -> None:
    """Shade the drop below the teacher that the recipe accepts."""
    allowed = report["accuracy"].get("max_drop")
    teacher = report["models"].get("teacher", {}).get("accuracy")
    if allowed is not None and teacher is not None:
        axes.axhspan(
            teacher - allowed,
            teacher,
            color=_COLOURS["teacher"],
            alpha=0.10,
            lw=0,
            label=f"accepted drop ({allowed:g})",
        )


def _write(figure: Figure, path: Path) -> None:
    """Save to a name of its own and move it in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".png")
    os.close(handle)
    temporary = Path(name)
    try:
        # Without the metadata the same report gives the same bytes.
        figure.savefig(temporary, dpi=130, metadata={"Software": None})
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
