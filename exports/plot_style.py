"""What the pictures share: colours for light and dark pages, and how a figure becomes a file."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

_DPI = 130


@dataclass(frozen=True)
class Palette:
    """Colours of one theme, as Okabe and Ito chose them: told apart by colour-blind readers.

    Attributes:
        good: passes, and the front.
        bad: what is worse than it may be.
    """

    ink: str
    soft: str
    paper: str
    grid: str
    generalist: str
    teacher: str
    pruned: str
    specialist: str
    good: str
    bad: str

    def model(self, name: str) -> str:
        """The colour of a model of the report."""
        return str(getattr(self, name))


LIGHT = Palette(
    ink="#1d2125",
    soft="#5b636b",
    paper="#ffffff",
    grid="#d9dde1",
    generalist="#767676",
    teacher="#0072b2",
    pruned="#b87700",
    specialist="#d55e00",
    good="#00795a",
    bad="#c13c00",
)
DARK = Palette(
    ink="#e8eaed",
    soft="#a3abb3",
    paper="#1a1d21",
    grid="#3a4047",
    generalist="#a3a3a3",
    teacher="#56b4e9",
    pruned="#e69f00",
    specialist="#ff9a55",
    good="#3ecfa0",
    bad="#ff8a5c",
)
MARKERS = {"generalist": "s", "teacher": "o", "pruned": "^", "specialist": "D"}


@contextmanager
def themed(dark: bool = False) -> Iterator[Palette]:
    """Set matplotlib's colours for what is drawn inside the block; yields them."""
    colours = DARK if dark else LIGHT
    settings: dict[Any, Any] = {
        "figure.facecolor": colours.paper,
        "savefig.facecolor": colours.paper,
        "axes.facecolor": colours.paper,
        "text.color": colours.ink,
        "axes.labelcolor": colours.ink,
        "axes.edgecolor": colours.soft,
        "axes.titlesize": 10.5,
        "xtick.color": colours.soft,
        "ytick.color": colours.soft,
        "xtick.labelcolor": colours.ink,
        "ytick.labelcolor": colours.ink,
        "grid.color": colours.grid,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(settings):
        yield colours


def new_figure(width: float, height: float) -> Figure:
    """Return a figure, in inches, that draws without a display and without pyplot's state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def headline(figure: Figure, text: str) -> None:
    """Put the picture's one sentence at its top left."""
    figure.suptitle(text, x=0.01, ha="left", weight="bold", fontsize=11.5, parse_math=False)


def plain_axes(axes: Axes, *, grid: str = "both") -> None:
    """Keep of the axes what is read."""
    axes.grid(axis=grid, lw=0.7)  # type: ignore[arg-type]
    axes.tick_params(length=0)


def png(figure: Figure) -> bytes:
    """Return the figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # a class name in a script that the font lacks is drawn as boxes, and is no reason to stop
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        figure.savefig(buffer, format="png", dpi=_DPI)
    # 256 colours are plenty for a drawing, and a third of the bytes: pages carry them inside
    with Image.open(buffer) as image:
        few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    content = io.BytesIO()
    few.save(content, format="PNG", optimize=True)
    return content.getvalue()
