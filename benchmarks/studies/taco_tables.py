"""What the rows of `study_taco.py` say: the frontier, comparisons with intervals, a picture."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.studies.grid import TASKS, Row
from benchmarks.studies.tables import (
    Interval,
    clustered,
    interval,
    markdown,
    paired,
    spread,
    told_of,
)

LADDER = (0.5, 0.75, 0.9, 0.95)
ALLOCATIONS = ("evolutionary", "dynamic", "global", "integer", "uniform")
KEYS = ("model", "task", "seed", "shots", "pool", "sparsity")
BUDGET = 2.0  # points that a specialist may lose
# blocks of the frontier, and what they are called
FRONTIER = {
    "frontier-shots": "shots alone",
    "frontier-pool": "with pool",
    "frontier-long": "with pool, four times the training",
}


def where(found: list[Row], **values: Any) -> list[Row]:
    """Rows that have these values; a tuple allows several."""
    return [
        row
        for row in found
        if all(row[k] in v if isinstance(v, tuple) else row[k] == v for k, v in values.items())
    ]


def contrasts(found: list[Row]) -> list[tuple[str, dict[tuple[Any, ...], float], str]]:
    """(what, differences in points by model, task, ..., rows it is from) of every comparison."""
    fine = [row for row in found if "failed" not in row]
    points = [{**row, "points": 100 * row["accuracy"]} for row in fine]
    listed = []

    def add(what: str, rows: list[Row], key: str, one: Any, other: Any, source: str) -> None:
        pairs = paired(rows, key, one, other, of="points", over=KEYS)
        listed.append((what, pairs, source))

    for at in (0.5, 0.75, 0.9):
        bare = where(points, block="calibration", sparsity=at)
        add(
            f"task-aware minus generic calibration, {at:.0%}, no recovery",
            bare,
            "calibration",
            "task",
            "generic",
            "taco/calibration/*",
        )
    for at in (0.75, 0.9):
        for pool, blocks in (
            (False, ("frontier-shots", "recovered")),
            (True, ("frontier-pool", "recovered-pool")),
        ):
            data = "pool" if pool else "shots alone"
            add(
                f"task-aware minus generic calibration, {at:.0%}, ladder, {data}",
                where(points, block=blocks, sparsity=at, shots=16),
                "calibration",
                "task",
                "generic",
                f"taco/{blocks[0]}/*, taco/{blocks[1]}/*",
            )
    for at in (0.75, 0.9):
        for allocation in ALLOCATIONS[:-1]:
            bare = where(
                points, block=("calibration", "allocation"), sparsity=at, calibration="task"
            )
            add(
                f"{allocation} minus uniform allocation, {at:.0%}, no recovery",
                bare,
                "allocation",
                allocation,
                "uniform",
                "taco/allocation/*, taco/calibration/*",
            )
    for at in LADDER[:-1]:
        add(
            f"four times the training minus once, {at:.0%}, ladder, pool",
            where(points, block=("frontier-long", "frontier-pool"), sparsity=at),
            "block",
            "frontier-long",
            "frontier-pool",
            "taco/frontier-long/*, taco/frontier-pool/*",
        )
    ladders = where(points, block=("frontier-pool", "uniform-pool"), sparsity=0.9)
    for allocation in ALLOCATIONS[:-1]:
        add(
            f"{allocation} minus uniform allocation, 90%, ladder, pool",
            ladders,
            "allocation",
            allocation,
            "uniform",
            "taco/frontier-pool/*, taco/uniform-pool/*",
        )
    leaps = where(points, block=("frontier-pool", "one-shot"), sparsity=0.9)
    add(
        "ladder minus one shot at equal training, 90%, pool",
        leaps,
        "schedule",
        "ladder",
        "one-shot",
        "taco/frontier-pool/*, taco/one-shot/*",
    )
    frontier = where(points, block=("frontier-pool", "frontier-shots"))
    for at in LADDER:
        pairs = paired(
            where(frontier, sparsity=at),
            "pool",
            True,
            False,
            of="points",
            over=("model", "task", "seed"),
        )
        listed.append(
            (
                f"pool minus shots alone, {at:.0%}, ladder",
                pairs,
                "taco/frontier-pool/*, taco/frontier-shots/*",
            )
        )
    return [item for item in listed if item[1]]


def contrast_table(found: list[Row]) -> str:
    """Every comparison with two intervals: over all pairs, and over models and tasks."""
    lines = [
        (what, interval(list(pairs.values())), clustered(pairs), f"`{source}`")
        for what, pairs, source in contrasts(found)
    ]
    heads = ("difference in accuracy, points", "mean [95 %] (pairs)", "over model and task", "rows")
    return markdown(heads, lines) if lines else ""


def frontier_table(found: list[Row]) -> str:
    """Drop by model, task and sparsity; the mean over tasks of each model."""
    fine = [row for row in found if "failed" not in row and row["calibration"] == "task"]
    fine = where(fine, schedule="ladder", block=("frontier-pool", "frontier-shots", "few-and-many"))
    drops: dict[tuple[Any, ...], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    ratios: dict[float, list[float]] = defaultdict(list)
    for row in fine:
        data = f"{row['shots']} + pool" if row["pool"] else str(row["shots"])
        for task in (row["task"], "all"):
            drops[row["model"], task, data][row["sparsity"]].append(row["drop"])
        ratios[row["sparsity"]].append(row["nonzero_ratio"])
    passed = sorted(ratios)
    heads = [f"{at:.0%} ({sum(ratios[at]) / len(ratios[at]):.1f}x)" for at in passed]
    order = list(TASKS)
    lines = []
    for (model, task, data), by in sorted(
        drops.items(), key=lambda item: (order.index(item[0][0]), item[0][1] == "all", *item[0][1:])
    ):
        if task == "all" and len(TASKS[model]) == 1:
            continue
        lines.append((model, task, data, *(spread(by.get(at, [])) for at in passed)))
    return markdown(("model", "task", "shots", *heads), lines) if lines else ""


def lost(rows: list[Row]) -> tuple[Interval, Interval]:
    """Drop in points with its interval over runs, and over tasks: seeds of one are alike."""
    drops = {(row["task"], row["seed"]): 100 * row["drop"] for row in rows}
    return interval(list(drops.values())), clustered(drops, 1)


def holds(runs: Interval, tasks: Interval, points: float = BUDGET) -> bool:
    """Whether both intervals end at or below this many points."""
    return max(runs.high, tasks.high) <= points


def within_table(found: list[Row]) -> str:
    """Which models lose at most two points with the pool, by sparsity: mean and two intervals."""
    fine = [row for row in found if "failed" not in row]
    lines = []
    for model in TASKS:
        for block, told in (("frontier-pool", "once"), ("frontier-long", "four times")):
            ours = where(fine, block=block, model=model)
            if ours:
                cells = [_within(*lost(where(ours, sparsity=at))) for at in LADDER]
                lines.append((model, told, *cells))
    heads = ("model", "training", *(f"{1 / (1 - at):.0f}x" for at in LADDER))
    return markdown(heads, lines) if lines else ""


def _within(runs: Interval, tasks: Interval) -> str:
    """One cell: mean, both intervals, and whether they or the mean alone are within budget."""
    if not runs.n:
        return ""
    over = f"; [{tasks.low:.2f}, {tasks.high:.2f}] ({tasks.n})" if tasks.n > 1 else "; one task"
    if holds(runs, tasks):
        word = "within"
    else:
        word = "mean within" if runs.mean <= BUDGET else "beyond"
    return f"{runs}{over} {word} {BUDGET:g}"


def teacher_table(found: list[Row]) -> str:
    """What is lost is lost from: the teachers' accuracy, by model and task."""
    by: dict[tuple[Any, ...], dict[int, float]] = defaultdict(dict)
    for row in found:
        if "failed" not in row:
            by[row["model"], row["task"], row["shots"]][row["seed"]] = row["teacher"]
    lines = []
    for model, tasks in TASKS.items():
        for task in tasks:
            for (_, _, shots), seeds in sorted(
                item for item in by.items() if item[0][:2] == (model, task)
            ):
                x = list(seeds.values())
                told = f"{sum(x) / len(x):.3f} ({min(x):.3f} to {max(x):.3f}; {len(x)})"
                lines.append((model, task, shots, told))
    heads = ("model", "task", "shots", "accuracy (lowest to highest; seeds)")
    return markdown(heads, lines) if lines else ""


def table(found: list[Row]) -> str:
    """The study as Markdown."""
    parts = [told_of(found)]
    if teachers := teacher_table(found):
        parts += ["Teachers:", teachers]
    if frontier := frontier_table(found):
        parts += [
            "Drop in points, teacher minus specialist, ladder, task-aware; mean (standard "
            "deviation; runs). Column heads: zeros, and the ratio of nonzeros read from the "
            "files, both of prunable weights: MiniLM's embeddings, about half of all its weights, "
            "stay as they are.",
            frontier,
        ]
    if within := within_table(found):
        parts += [
            "Mean drop over tasks and seeds with the pool, in points [95 % over runs] (runs); "
            "[95 % over tasks, seeds averaged first] (tasks), by ratio of nonzero prunable "
            f"weights. 'Within {BUDGET:g}' has both intervals end there or below, 'mean within "
            f"{BUDGET:g}' the mean alone:",
            within,
        ]
    if compared := contrast_table(found):
        parts += [
            "Comparisons, paired by model, task, seed and data. The second interval takes "
            "the mean over seeds first, since seeds of one model and task are alike.",
            compared,
        ]
    return "\n\n".join(parts)


def picture(found: list[Row], path: Path) -> None:
    """Accuracy drop over sparsity, a panel a model that has rows, with the pool and without."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    models = [model for model in TASKS if where(found, block=tuple(FRONTIER), model=model)]
    if not models:
        return
    figure, panels = plt.subplots(1, len(models), figsize=(3.2 * len(models), 3))
    for panel, model in zip(np.atleast_1d(panels), models, strict=True):
        for colour, (block, label) in enumerate(FRONTIER.items()):
            ours = where(found, block=block, model=model)
            at = sorted({row["sparsity"] for row in ours})
            drops = [[100 * row["drop"] for row in where(ours, sparsity=x)] for x in at]
            if at:
                panel.errorbar(
                    [LADDER.index(x) for x in at],
                    [np.mean(x) for x in drops],
                    [np.std(x, ddof=1) if len(x) > 1 else 0 for x in drops],
                    color=f"C{colour}",
                    label=label,
                    capsize=3,
                    marker="o",
                )
        panel.set_xticks(range(len(LADDER)), [f"{x:.0%}" for x in LADDER])
        low, high = panel.get_ylim()
        panel.set_ylim(low, high + 0.3 * (high - low))  # room for the legend
        panel.axhline(2, color="grey", linewidth=0.8, linestyle=":")
        panel.set_title(model, fontsize=9)
        panel.set_xlabel("zeros")
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=7, loc="upper left")
    np.atleast_1d(panels)[0].set_ylabel("drop, points")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
