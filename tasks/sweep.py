"""Stage: every point of a sweep on the test set and on the clock, the front, and the pick."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exports.runtime import host_profile
from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.layout import GRAPH
from tasks.points import Point, points
from tasks.progress import Callback
from tasks.splits import load_split
from tasks.stage import stage
from tasks.this_host import told_of

_COSTS = ("latency_ms", "bytes", "nonzero")


@stage(
    reads=("name", "verify", "task.seed", "sweep.formats", "sweep.sparsities", "shrink.path"),
    outside=lambda _: {"host": told_of()},
)
def compare(
    recipe: Recipe,
    data: Artifact,
    leaked: Artifact,
    generalist: Artifact,
    *made: Artifact,
    into: Path,
    progress: Callback,
) -> dict[str, Any]:
    """Measure all points, interleaved in one process, and pick the smallest that passes.

    `made` holds the exports of the generalist and of the teacher, then for each of `points` its
    export and what `held_out` found of it. Which point is tested first follows from the held-out
    divergence alone, so that the pick keeps the confidence of a single test (`exports.front`).
    """
    from exports.census import census
    from exports.front import pareto, pick_smallest
    from tasks.leaks import kept_rows
    from tasks.measure import logits_of, time_graphs, timing_feeds, typical_tokens
    from tasks.reference import known_rows

    ends = dict(zip(("generalist", "teacher"), made[:2], strict=True))
    found = points(recipe, recipe.shrink.path or ())
    exports = dict(zip((point.name for point in found), made[2::2], strict=True))
    held = dict(zip(exports, made[3::2], strict=True))
    folders = {name: each.folder for name, each in {**ends, **exports}.items()}
    test = load_split(data.folder / "test.parquet")
    test = test.rows(kept_rows(leaked, len(test)))
    shots = load_split(data.folder / "support.parquet").inputs
    progress(0, 3, "accuracy")
    labels = np.array(test.labels)
    logits = logits_of(folders, test.inputs)
    rows = known_rows(generalist, data.metrics["classes"])
    right = {name: x.argmax(1) == labels for name, x in logits.items() if name != "generalist"}
    if rows:
        right["generalist"] = logits["generalist"][:, rows].argmax(1) == labels
    progress(1, 3, "latency")
    tokens = typical_tokens(folders["teacher"], shots, recipe)
    feeds = timing_feeds(folders, test.inputs, recipe, tokens)
    files = {name: folder / GRAPH for name, folder in folders.items()}
    timings = time_graphs(files, feeds, recipe, recipe.verify.threads)
    progress(2, 3, "front")
    every = {**ends, **exports}
    counts = {
        name: census(files[name], each.json_file("prunable.json")) for name, each in every.items()
    }
    order = _order(held)
    told = [
        {
            **_point(recipe, point, right, timings, counts, order),
            "held_out": held[point.name].metrics,
        }
        for point in found
    ]
    values = np.array([row["accuracy"] for row in told])
    for cost in _COSTS:
        front = pareto(np.array([row[cost] for row in told]), values)
        for row, on_it in zip(told, front, strict=True):
            row.setdefault("front", {})[cost] = bool(on_it)
    picked, why = pick_smallest(told, recipe.verify.max_drop)
    report = {
        "schema": 1,
        "name": recipe.name,
        "n": len(labels),
        "max_drop": recipe.verify.max_drop,
        "confidence": recipe.verify.confidence,
        "speed": {
            "runtime": "cpu",
            "threads": recipe.verify.threads,
            "batch": recipe.verify.batch,
            "tokens": tokens,
            "repeats": recipe.verify.repeats,
        },
        **{name: _end(recipe, name, right, timings, counts) for name in ends},
        "points": told,
        "picked": None if picked is None else told[picked]["point"],
        "picked_why": why,
        "host": host_profile(),
    }
    (into / "sweep.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    progress(3, 3, "written")
    return {key: report[key] for key in ("points", "picked", "picked_why")}


def _order(held: Mapping[str, Artifact]) -> dict[str, int]:
    """By point, its place in the tests: the least held-out divergence first."""
    names = sorted(held, key=lambda name: held[name].metrics["kl"])
    return {name: at for at, name in enumerate(names)}


def _end(
    recipe: Recipe,
    name: str,
    right: Mapping[str, np.ndarray],
    timings: Any,
    counts: Mapping[str, Mapping[str, int]],
) -> dict[str, Any]:
    """The generalist or the teacher, as a line of the table."""
    from exports.verdict import wilson

    known = right.get(name)
    accuracy, interval = None, None
    if known is not None:
        accuracy = float(known.mean())
        interval = list(wilson(int(known.sum()), len(known), recipe.verify.confidence))
    return {
        "accuracy": accuracy,
        "accuracy_ci": interval,
        "latency_ms": timings.median_ms[name],
        "bytes": counts[name]["bytes"],
        "nonzero": counts[name]["prunable_nonzero"],
    }


def _point(
    recipe: Recipe,
    point: Point,
    right: Mapping[str, np.ndarray],
    timings: Any,
    counts: Mapping[str, Mapping[str, int]],
    order: Mapping[str, int],
) -> dict[str, Any]:
    """One point's accuracy against the teacher, and its costs against the generalist."""
    from exports.verdict import paired_interval, verdict

    asked = recipe.verify
    drop, low, high, _ = paired_interval(right["teacher"], right[point.name], asked.confidence)
    ratio, *ratio_ci = timings.ratio("generalist", point.name, asked.confidence)
    row = _end(recipe, point.name, right, timings, counts)
    first = counts["generalist"]
    return {
        "point": point.name,
        "order": order[point.name],
        "speedup_asked": point.speedup,
        "sparsity_asked": point.sparsity,
        "format": point.form,
        **row,
        "drop": drop,
        "drop_ci": [low, high],
        "ratio": ratio,
        "ratio_ci": ratio_ci,
        "bytes_ratio": first["bytes"] / row["bytes"],
        "nonzero_ratio": first["prunable_nonzero"] / max(1, row["nonzero"]),
        "status": verdict((low, high), asked.max_drop)["status"],
    }


def wanted_between(held: Sequence[tuple[float, float]], max_drop: float) -> tuple[float, float]:
    """Between which two speeds an adaptive search looks next.

    Args:
        held: (speed, held-out share of labels as the teacher's), rising in speed, two or more.

    Returns:
        the neighbours between which agreement falls below 1 - max_drop; where it does nowhere, the
        two that are farthest apart in ratio.
    """
    pairs = list(itertools.pairwise(held))
    for (low, before), (high, after) in pairs:
        if before >= 1 - max_drop > after:
            return low, high
    widest = max(pairs, key=lambda pair: pair[1][0] / pair[0][0])
    return widest[0][0], widest[1][0]
