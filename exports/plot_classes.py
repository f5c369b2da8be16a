"""Draw what every class loses, with intervals that hold for all of them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from exports.card_evidence import by_drop
from exports.markdown import shortened
from exports.plot_style import Palette, headline, new_figure, plain_axes

_ONE_COLUMN = 50  # classes; more stand in two
_LONGEST = 26  # characters of a name


def per_class_figure(report: Mapping[str, Any], colours: Palette) -> Figure:
    """Draw the drop of every class, the largest on top, in points.

    Reads `accuracy.per_class`: one row a class with `drop` and `drop_ci` (simultaneous intervals)
    and `worse`, whether the class lost more than chance explains after correction for their
    number. A class that was not measured is left out. Readable at 2 to 150 classes: beyond 50 they
    stand in two columns.
    """
    accuracy = report["accuracy"]
    rows = by_drop(accuracy["per_class"])
    columns = 1 if len(rows) <= _ONE_COLUMN else 2
    tall = -(-len(rows) // columns)
    pitch = 0.26 if tall <= 20 else 0.2 if tall <= _ONE_COLUMN else 0.165
    figure = new_figure(9.0 if columns == 1 else 11.5, 1.5 + pitch * max(tall, 3))
    panels = figure.subplots(1, columns, sharex=True, squeeze=False)[0]
    size = 9.5 if tall <= 20 else 8.5 if tall <= _ONE_COLUMN else 7.5
    for index, axes in enumerate(panels):
        part = rows[index * tall : (index + 1) * tall]
        _panel(axes, part, tall, size, colours)
        axes.axvline(
            100 * accuracy["drop"], color=colours.soft, lw=1, ls="--", label="all classes together"
        )
    confidence = accuracy.get("confidence", 0.95)
    figure.supxlabel(
        f"accuracy lost against the teacher, in points ({confidence:.0%} for all classes at once)",
        fontsize=9.5,
        x=0.01,
        ha="left",
    )
    worse = sum(bool(row.get("worse")) for row in rows)
    told = "no class is" if not worse else "1 class is" if worse == 1 else f"{worse} classes are"
    headline(figure, f"Of {len(rows)} classes, {told} worse than chance explains")
    found: dict[str, Any] = {}
    for axes in panels:
        found |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(
        list(found.values()), list(found), loc="outside lower right", ncols=len(found), fontsize=9
    )
    return figure


def _panel(
    axes: Axes, rows: Sequence[Mapping[str, Any]], tall: int, size: float, colours: Palette
) -> None:
    """Draw some of the classes, one a line, top down."""
    for worse, colour, marker, label in (
        (False, colours.teacher, "o", "within chance"),
        (True, colours.bad, "D", "worse than chance explains"),
    ):
        picked = [at for at, row in enumerate(rows) if bool(row.get("worse")) == worse]
        if not picked:
            continue
        drops = [100 * rows[at]["drop"] for at in picked]
        ends = [[100 * end for end in rows[at]["drop_ci"]] for at in picked]
        axes.errorbar(
            drops,
            picked,
            xerr=[
                [max(0.0, x - low) for x, (low, _) in zip(drops, ends, strict=True)],
                [max(0.0, high - x) for x, (_, high) in zip(drops, ends, strict=True)],
            ],
            fmt=marker,
            color=colour,
            markersize=5,
            elinewidth=1.4,
            label=label,
        )
    axes.axvline(0, color=colours.ink, lw=0.9)
    names = [f"{shortened(str(row['class']), _LONGEST)} ({row['n']})" for row in rows]
    axes.set_yticks(range(len(rows)), labels=names, fontsize=size, parse_math=False)
    axes.set_ylim(tall - 0.4, -0.6)
    plain_axes(axes, grid="x")
    axes.spines["left"].set_visible(False)
