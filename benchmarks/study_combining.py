"""Prune, distil, quantize: all eight combinations on MiniLM, and what each adds to the others.

A 2^3 design a (task, seed), with the unlabelled pool: prune to 75 % or 90 % at once or not; distil
STEPS steps from the teacher or not; INT8 weights and activations or float32. What is pruned keeps
the best of its averages by held-out divergence. What is not pruned begins as the teacher itself,
which no step can bring nearer: it keeps the last average, so that its cells tell what training on
the shots' labels and the teacher's answers does to a dense model. The marginal value of one is the
accuracy with it minus without it, at each setting of the other two, paired by task and seed.

    python benchmarks/study_combining.py plan|pack|run|table ...  (benchmarks/studies/command.py)

Three tasks (banking, travel, sst2), seeds 0 to 4 by default: 30 rows of eight cells. On an H200
with six processes a row takes about 90 s (two trainings of 300 steps at 40 ms, eight exports):
2,700 process seconds, four minutes of twelve processes.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.config import Recipe

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.studies.command import Study, main
from benchmarks.studies.grid import MINILM, SEEDS, TASKS, Row, recipe_of
from benchmarks.studies.models import recovered
from benchmarks.studies.scoring import begin, job_of, score
from benchmarks.studies.tables import Interval, clustered, interval, markdown, told_of

STEPS = 300
FACTORS = ("prune", "distil", "quantize")
CELLS = tuple(itertools.product((False, True), repeat=3))


def name_of(cell: tuple[bool, ...]) -> str:
    """'prune+quantize'; 'none' for the teacher."""
    return "+".join(word for word, on in zip(FACTORS, cell, strict=True) if on) or "none"


def rows(args: argparse.Namespace) -> list[Row]:
    """All rows; seeds 3 and 4 are added to the usual ones."""
    seeds = list(args.seeds) + ([3, 4] if tuple(args.seeds) == SEEDS else [])
    return [
        row_of(task, seed, sparsity, STEPS if args.steps is None else args.steps)
        for sparsity in (0.9, 0.75)
        for seed in seeds
        for task in TASKS[MINILM]
    ]


def row_of(task: str, seed: int, sparsity: float, steps: int) -> Row:
    """One design."""
    name = f"combining/{sparsity:.0%}/{MINILM}/{task}/s{seed}"
    recipe = recipe_of(
        MINILM,
        task,
        seed=seed,
        pool=True,
        prune={"sparsity": sparsity},
        distill={
            "steps": round(2 * steps * (1 - sparsity)),
            "rungs": [sparsity],
            "labelled_share": 0.5,
        },
        quantize={
            "format": "int8",
            "route": "fused",
            "activation": "uint8",
            "calibration_report": 0,
        },
    )
    return {
        "id": name,
        "name": name,
        "ids": [f"{name}/{name_of(cell)}" for cell in CELLS],
        "block": f"{sparsity:.0%}",
        "model": MINILM,
        "task": task,
        "seed": seed,
        "sparsity": sparsity,
        "steps": steps,
        "recipe": recipe,
    }


def work(row: Row, recipe: Recipe, jobs: Any) -> None:
    """The eight cells."""
    from tasks.prune import prune
    from tasks.quantize import quantize

    data, _, teacher = begin(row, recipe)
    bare = recipe.model_copy(update={"distill": recipe.distill.model_copy(update={"steps": 0})})
    for pruned, distilled in itertools.product((False, True), repeat=2):
        if pruned:
            step = (recipe if distilled else bare).at_rung(row["sparsity"])
            model = prune.compute(step, data, teacher, teacher)
        else:
            steps = row["steps"] if distilled else 0
            model = recovered(recipe, data, teacher, teacher, steps, judged=False)
        for rounded in (False, True):
            cell = (pruned, distilled, rounded)
            last = quantize.compute(recipe, data, model) if rounded else model
            facts = {"id": f"{row['name']}/{name_of(cell)}", "cell": name_of(cell)}
            facts |= dict(zip(FACTORS, cell, strict=True))
            jobs.put(job_of(row, recipe, data, teacher, last, **facts))


Designs = dict[tuple[Any, ...], dict[tuple[bool, ...], Row]]


def designs(found: list[Row]) -> Designs:
    """Complete designs by (block, task, seed)."""
    cells: Designs = defaultdict(dict)
    for row in found:
        if "failed" not in row:
            key = (row["block"], row["task"], row["seed"])
            cells[key][tuple(bool(row[factor]) for factor in FACTORS)] = row
    return {key: cell for key, cell in cells.items() if len(cell) == len(CELLS)}


def marginal(
    of: Designs, block: str, factor: str, others: tuple[bool, ...] | None
) -> tuple[Interval, Interval]:
    """Accuracy with minus without one factor, points; others None is the mean over settings.

    Over all designs, and over tasks with seeds averaged first.
    """
    at = FACTORS.index(factor)
    values: dict[tuple[Any, ...], float] = {}
    for key, cells in of.items():
        if key[0] != block:
            continue
        settings = itertools.product((False, True), repeat=2) if others is None else [others]
        gains = []
        for setting in settings:
            on, off = list(setting), list(setting)
            on.insert(at, True)
            off.insert(at, False)
            gains.append(cells[tuple(on)]["accuracy"] - cells[tuple(off)]["accuracy"])
        values[key[1:]] = 100 * sum(gains) / len(gains)
    return interval(list(values.values())), clustered(values, size=1)


def table(found: list[Row]) -> str:
    """The study as Markdown."""
    whole = designs(found)
    parts = [told_of(found)]
    for block in sorted({key[0] for key in whole}):
        lines: list[tuple[str, ...]] = []
        for cell in CELLS:
            ours = [cells[cell] for key, cells in whole.items() if key[0] == block]
            lines.append(
                (
                    name_of(cell),
                    str(interval([100 * row["accuracy"] for row in ours])),
                    str(interval([100 * row["drop"] for row in ours])),
                    f"{sum(row['bytes'] for row in ours) / len(ours) / 1e6:.1f}",
                    f"{sum(row['nonzero_ratio'] for row in ours) / len(ours):.1f}x",
                )
            )
        heads = ("what", "accuracy [95 %] (runs)", "drop [95 %]", "MB", "nonzeros")
        parts += [
            f"Pruned to {block}, MiniLM; mean over tasks and seeds, points.",
            markdown(heads, lines),
        ]
        lines = []
        for factor in FACTORS:
            rest = [name for name in FACTORS if name != factor]
            every, by_task = marginal(whole, block, factor, None)
            lines.append((f"**{factor}**", "mean of the four", str(every), str(by_task)))
            for setting in itertools.product((False, True), repeat=2):
                beside = " and ".join(n for n, on in zip(rest, setting, strict=True) if on)
                every, by_task = marginal(whole, block, factor, setting)
                lines.append(
                    (factor, f"with {beside or 'neither of the others'}", str(every), str(by_task))
                )
        parts += [
            "What each adds: accuracy with it minus without it, points.",
            markdown(("adding", "where", "[95 %] (designs)", "over tasks"), lines),
        ]
    return "\n\n".join(parts)


def picture(found: list[Row], path: Path) -> None:
    """Marginal values with their intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    whole = designs(found)
    blocks = sorted({key[0] for key in whole})
    figure, panels = plt.subplots(
        1, max(1, len(blocks)), figsize=(4.5 * max(1, len(blocks)), 3.5), squeeze=False
    )
    for panel, block in zip(panels[0], blocks, strict=False):
        for at, factor in enumerate(FACTORS):
            for shift, setting in enumerate(itertools.product((False, True), repeat=2)):
                found_here, _ = marginal(whole, block, factor, setting)
                half = found_here.high - found_here.mean if found_here.n > 1 else 0
                panel.errorbar(
                    [at + (shift - 1.5) / 8],
                    [found_here.mean],
                    [half],
                    marker="o",
                    capsize=2,
                    color=f"C{shift}",
                )
        panel.axhline(0, color="grey", linewidth=0.8)
        panel.set_xticks(range(3), FACTORS)
        panel.set_title(f"pruned to {block}")
    panels[0][0].set_ylabel("accuracy gained, points")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


STUDY = Study("combining", __doc__.splitlines()[0], rows, work, score, table, picture)

if __name__ == "__main__":
    main(STUDY)
