"""What INT8 costs on the task's own examples: layers to leave float, calibration samples needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from exports.calibration_report import calibration_report
from exports.divergence import Quantize
from exports.quantize import WeightGrid
from exports.sensitivity import FloatChoice, find_float
from tasks.config import Recipe

Feed = dict[str, np.ndarray]
_JUDGED = 64  # most examples that a number of calibration samples is judged on
_MOST_HARMFUL = 8  # rows of the report


def single_rows(feeds: Iterator[Feed], total: int, most: int, seed: int) -> list[Feed]:
    """At most `most` of `total` examples, each a batch of its own, in seeded order.

    Batches come sorted by length; the first few of these are of any length and class.
    """
    random = np.random.default_rng(seed)
    wanted = random.permutation(total)[:most].tolist()
    picked: dict[int, Feed] = {}
    at, left = 0, set(wanted)
    for feed in feeds:
        rows = len(next(iter(feed.values())))
        for row in range(rows):
            if at + row in left:
                picked[at + row] = {name: x[row : row + 1].copy() for name, x in feed.items()}
        at += rows
    return [picked[row] for row in wanted if row in picked]


def kept_float(
    recipe: Recipe,
    path: Path,
    weights: Mapping[str, WeightGrid],
    ranges: Mapping[str, tuple[float, float]],
    feeds: list[Feed],
    activation: Any,
    quantize: Quantize,
    progress: Callable[[int, int, str], None] | None,
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Layers to leave float so that `quantize.keep_float` holds, and what the report tells of it.

    Nothing is searched where the whole INT8 graph holds.
    """
    asked = recipe.quantize.keep_float
    feeds = feeds[: asked.samples]
    if not feeds:
        return (), {}
    found: FloatChoice = find_float(
        path,
        weights=weights,
        ranges=ranges,
        feeds=feeds,
        activation=activation,
        max_kl=asked.max_kl,
        min_agreement=asked.min_agreement,
        max_share=asked.max_share,
        samples=len(feeds),
        quantize=quantize,
        progress=progress,
    )
    told = {
        "before": found.before.to_dict(),
        "after": found.after.to_dict(),
        "holds": found.holds,
        "layers": [row.to_dict() for row in found.rows[:_MOST_HARMFUL]],
    }
    # layers that cost time and do not buy the bound are left in INT8
    return (found.layers if found.holds else ()), told


def calibration_rows(
    recipe: Recipe,
    path: Path,
    weights: Mapping[str, WeightGrid],
    feeds: list[Feed],
    activation: Any,
    exclude: tuple[str, ...],
    quantize: Quantize,
) -> list[dict[str, Any]]:
    """How the INT8 graph's distance to the float one moves with the calibration examples.

    Judged on examples that set no range, where there are any.
    """
    most = min(recipe.quantize.calibration_report, len(feeds))
    if most == 0:
        return []
    others = feeds[most : most + _JUDGED]
    rows = calibration_report(
        path,
        weights=weights,
        feeds=feeds[:most],
        activation=activation,
        rule=recipe.quantize.activation_rule,
        evaluate=others or None,
        exclude=exclude,
        quantize=quantize,
    )
    return [row.to_dict() for row in rows]


def examples_needed(recipe: Recipe) -> int:
    """Examples that these two and the choice of a form look at."""
    asked = recipe.quantize
    report = asked.calibration_report + _JUDGED if asked.calibration_report else 0
    return max(asked.keep_float.samples, report, _JUDGED)
