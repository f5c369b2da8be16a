"""The last stage but one: accuracy with its interval, speed, size, parity and the verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import compression.schedules  # noqa: F401  (recipe.rungs asks it which graphs there are)
from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.digests import DIGITS, source_digest
from tasks.layout import ANSWERS, graph_names
from tasks.progress import Callback
from tasks.splits import load_split
from tasks.stage import stage
from tasks.this_host import told_of

_TOLD = ("models", "accuracy", "speed", "sparsity", "verdict")


def _outside(recipe: Recipe) -> dict[str, str]:
    """This host, on which the timings and so the verdict rest; inputs from outside the task."""
    found, task = {"host": told_of()}, recipe.task
    if recipe.limits.samples:
        # the test set itself, where it is named, is not asked for its other classes
        field = "task.test" if recipe.limits.outside is None else "limits.outside"
        source = recipe.limits.outside or task.test
        # the end of its name is told in the report; digits are shown to no task about digits
        told = Path(source).name if Path(source).exists() else source
        digits = DIGITS in (task.train, task.test)
        found |= {field: source_digest(source), "told": told, "digits": str(digits)}
    return found


@stage(
    reads=(
        "name",
        "target",
        "verify",
        "limits.samples",
        "limits.threshold",
        "limits.corruptions",
        "task.seed",
        "task.shots",
        "task.image_column",
        "task.text_column",
        "task.label_column",
        "task.allow_outside_files",
        "prune",
        "quantize",
        "distill.schedule",
        "distill.rungs",
        "distill.rung_count",
        "sparsity",
        "shrinks",
    ),
    outside=_outside,
)
def verify(
    recipe: Recipe,
    data: Artifact,
    generalist: Artifact,
    teacher: Artifact,
    *made: Artifact,
    into: Path,
    progress: Callback,
) -> dict[str, Any]:
    """Measure everything that the verdict rests on.

    `made` holds the exports in the order of `graph_names`, and what was made on the way to them
    and the report tells of: what leaks found, the float specialist, the profile, the last step of
    shrinking, the trimmed model.
    """
    from tasks.clock import clocked
    from tasks.judge import BUSY, Measured, judge
    from tasks.leaks import kept_rows
    from tasks.limits import measure_limits
    from tasks.measure import logits_of
    from tasks.parity import parity_chain
    from tasks.reference import known_rows

    exports = [artifact for artifact in made if artifact.stage == "export"]
    steps = {artifact.stage: artifact for artifact in made if artifact.stage != "export"}
    exported = dict(zip(graph_names(recipe), exports, strict=True))
    folders = {name: artifact.folder for name, artifact in exported.items()}
    test = load_split(data.folder / "test.parquet")
    test = test.rows(kept_rows(steps["leaks"], len(test)))
    shots = load_split(data.folder / "support.parquet").inputs
    progress(0, 5, "accuracy")
    logits = logits_of(folders, test.inputs)
    rows = known_rows(generalist, data.metrics["classes"])
    logits["generalist"] = logits["generalist"][:, rows] if rows else np.empty((0, 0))
    progress(1, 5, "latency")
    trimmed = steps["trim"].metrics if "trim" in steps else None
    clock = clocked(recipe, exported, shots, test.inputs, trimmed)
    progress(2, 5, "parity")
    floats = next(steps[name] for name in ("trim", "prune", "shrink", "teach") if name in steps)
    parity = parity_chain(recipe, test, folders, teacher, floats, logits)
    progress(3, 5, "limits")
    limits = measure_limits(recipe, data, folders, test, logits)
    progress(4, 5, "verdict")
    measured = Measured(np.array(test.labels), logits, clock.timings, clock.counts)
    report = judge(recipe, data, generalist, measured, parity, steps, folders["specialist"])
    report["speed"] |= clock.speed
    report["sparsity"]["ledger"] += clock.on_gpu
    if limits is not None:
        report["limits"] = limits
    # pictures and cards are made of it when it is tracked: another look changes no figure
    (into / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    answers = {name: measured.right[name] for name in ("teacher", "specialist")}
    np.savez(into / ANSWERS, allow_pickle=False, digests=np.array(test.digests), **answers)
    told = {key: report[key] for key in _TOLD}
    timed = recipe.target.speedup is not None or recipe.target.latency_ms is not None
    # a run on a quieter host is to find out what this one could not
    return {**told, "provisional": timed and max(report["speed"]["spread"].values()) > BUSY}
