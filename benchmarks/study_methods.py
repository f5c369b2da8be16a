"""Every stage's methods on the same work: solvers, rounding, what recovery trains and on what.

Each row changes one value of a recipe and is compared with the row that has the default there: the
first task of each of the five models, 16 shots and the unlabelled pool, seeds 0 to 2.

    python benchmarks/study_methods.py plan|pack|run|table ...  (benchmarks/studies/command.py)

Blocks, most wanted first:

    solver        one shot without recovery, 50, 75 and 90 %: prune.method
    trained       90 % at once, then STEPS steps: distill.trained
    losses        the same, on one loss or two: distill.ce, kl, square_head
    compensation  75 and 90 % at once, prune.compensation, without recovery and with it
    int8, int4    the dense teacher rounded: quantize.method, smooth, compensation and bits;
                  nothing left float
    schedule      to 90 % with 2 STEPS steps in all: distill.schedule, density_scaled
    solver-after  90 % at once, then STEPS steps: prune.method

Compensation adds weights: its rows have more nonzeros than those beside them, which the columns of
ratios and sizes tell. Exact OBS is not among them: it refuses layers of these sizes.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.config import Recipe

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.studies.command import Study, main
from benchmarks.studies.grid import DEIT, MINILM, TASKS, Row, merged, recipe_of
from benchmarks.studies.scoring import begin, job_of, score
from benchmarks.studies.tables import clustered, interval, markdown, spread, told_of

STEPS = 300
LINEAR = (DEIT, MINILM)  # 4 bits are for Linear layers
SOLVERS = ("sweep", "wanda", "magnitude")
LOSSES: dict[str, dict[str, float]] = {
    "all": {},
    "labels": {"kl": 0.0, "square_head": 0.0, "ce": 1.0},
    "answers": {"ce": 0.0, "square_head": 0.0},
    "features": {"ce": 0.0, "kl": 0.0},
    "answers and features": {"ce": 0.0},
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "halving": {},
    "halving, equal steps": {"density_scaled": False},
    "cubic": {"schedule": "cubic"},
    "one_shot": {"schedule": "one_shot"},
}
ROUNDING = [
    *((method, "none") for method in ("gptq", "rtn", "adaquant")),
    ("gptq", "smoothquant"),
    ("gptq", "repq"),
]
# of every block: the alternative that the others are compared with
BASE = {
    "solver": "sweep",
    "solver-after": "sweep",
    "trained": "full",
    "losses": "all",
    "compensation": "none",
    "int8": "gptq",
    "int4": "gptq",
    "schedule": "halving",
}


def alternatives(steps: int) -> list[tuple[str, str, str, dict[str, Any], tuple[str, ...]]]:
    """(block, setting, alternative, changes of the recipe, models), in order of want."""
    models = tuple(TASKS)
    found: list[tuple[str, str, str, dict[str, Any], tuple[str, ...]]] = []

    def once(to: float, train: int, **changes: Any) -> dict[str, Any]:
        distill = {"rungs": [to], "steps": train, "density_scaled": False}
        return merged({"prune": {"sparsity": to}, "distill": distill}, changes)

    for to in (0.75, 0.5, 0.9):
        for name in SOLVERS:
            changes = once(to, 0, prune={"method": name})
            found.append(("solver", f"{to:.0%}", name, changes, models))
    for name in ("full", "low_rank", "norms", "none"):
        changes = once(0.9, steps, distill={"trained": name})
        found.append(("trained", "90%", name, changes, models))
    for name, weights in LOSSES.items():
        found.append(("losses", "90%", name, once(0.9, steps, distill=weights), models))
    for to, train in ((0.9, 0), (0.75, 0), (0.9, steps)):
        for name in ("none", "eora"):
            changes = once(to, train, prune={"compensation": name})
            setting = f"{to:.0%}, {train} steps"
            found.append(("compensation", setting, name, changes, models))
    plain = {"prune": {"sparsity": 0.0}}
    for block, chosen, format_ in (("int8", models, "int8"), ("int4", LINEAR, "int4")):
        for method, smooth in ROUNDING:
            rounding = {"format": format_, "method": method, "smooth": smooth}
            name = method if smooth == "none" else smooth
            found.append((block, "dense", name, merged(plain, {"quantize": rounding}), chosen))
    rounding = {"format": "int4", "compensation": "eora"}
    found.append(("int4", "dense", "eora", merged(plain, {"quantize": rounding}), LINEAR))
    for name in ("baq", "integer"):
        rounding = {"format": "int4", "bits": name}
        found.append(("int4", "dense", name, merged(plain, {"quantize": rounding}), LINEAR))
    for name, distill in SCHEDULES.items():
        changes = merged({"prune": {"sparsity": 0.9}, "distill": {"total_steps": 2 * steps}}, {})
        found.append(("schedule", "90%", name, merged(changes, {"distill": distill}), models))
    for name in SOLVERS:
        changes = once(0.9, steps, prune={"method": name})
        found.append(("solver-after", "90%", name, changes, models))
    return found


def rows(args: argparse.Namespace) -> list[Row]:
    """All rows, most wanted first: a block is whole before the next one begins."""
    steps = STEPS if args.steps is None else args.steps
    found: dict[str, list[Row]] = defaultdict(list)
    for seed in args.seeds:
        for block, setting, name, changes, models in alternatives(steps):
            for model in models:
                if not args.models or model in args.models:
                    found[block].append(row_of(model, seed, block, setting, name, changes))
    return [row for block in found.values() for row in block]


def row_of(
    model: str, seed: int, block: str, setting: str, name: str, changes: dict[str, Any]
) -> Row:
    """One row: one value changed."""
    task = TASKS[model][0]
    label = "-".join(f"{setting} {name}".replace(",", "").replace("%", "").split())
    whole = f"methods/{block}/{model}/{task}/s{seed}/{label}"
    quantize = {
        # one form of graph on every host, and no layer left float: errors are to be seen
        "route": "fused" if model in LINEAR else "static",
        "activation": "uint8",
        "keep_float": {"samples": 0},
        "calibration_report": 0,
    }
    recipe = recipe_of(model, task, seed=seed, pool=True, quantize=quantize)
    return {
        "id": whole,
        "name": whole,
        "ids": [whole],
        "block": block,
        "model": model,
        "task": task,
        "seed": seed,
        "setting": setting,
        "alternative": name,
        "recipe": merged(recipe, changes),
    }


def work(row: Row, recipe: Recipe, jobs: Any) -> None:
    """Prune, recover, smooth and round as the recipe says."""
    from tasks.prune import prune
    from tasks.quantize import quantize
    from tasks.smooth import smooth

    data, _, teacher = begin(row, recipe)
    model, told, seconds = teacher, {}, 0.0
    for rung in recipe.rungs:
        model = prune.compute(recipe.at_rung(rung), data, teacher, model)
        seconds += model.seconds
        told = {key: value for key, value in model.metrics.items() if key != "dense"}
    if recipe.quantize.format != "none":
        if recipe.quantize.smooth != "none":
            model = smooth.compute(recipe, data, model)
            told |= model.metrics
            seconds += model.seconds
        model = quantize.compute(recipe, data, model)
        seconds += model.seconds
    jobs.put(job_of(row, recipe, data, teacher, model, seconds=seconds, told=told))


def table(found: list[Row]) -> str:
    """The study as Markdown: a table a block, each alternative beside its default."""
    parts = [told_of(found)]
    fine = [row for row in found if "failed" not in row]
    for block, base in BASE.items():
        ours = [row for row in fine if row["block"] == block]
        if not ours:
            continue
        models = [model for model in TASKS if any(row["model"] == model for row in ours)]
        lines = []
        for setting in dict.fromkeys(row["setting"] for row in ours):
            here = [row for row in ours if row["setting"] == setting]
            default = {_cell(row): row for row in here if row["alternative"] == base}
            for name in dict.fromkeys(row["alternative"] for row in here):
                its = [row for row in here if row["alternative"] == name]
                drops = [
                    spread([row["drop"] for row in its if row["model"] == model])
                    for model in models
                ]
                pairs = against(its, default)
                ratio = sum(row["nonzero_ratio"] for row in its) / len(its)
                compared = (
                    "" if name == base else str(interval(list(pairs.values()))),
                    "" if name == base else str(clustered(pairs, 1)),
                )
                size = f"{sum(row['bytes'] for row in its) / len(its) / 1e6:.1f}"
                lines.append((setting, name, *drops, f"{ratio:.2f}", size, *compared))
        heads = (
            "setting",
            block,
            *models,
            "ratio of nonzeros",
            "MB",
            f"minus {base}, points [95 %] (pairs)",
            "over models",
        )
        parts += [f"**{block}**: drop in points, mean (standard deviation; runs):"]
        parts += [markdown(heads, lines)]
    return "\n\n".join(parts)


def _cell(row: Row) -> tuple[str, int]:
    return row["model"], row["seed"]


def against(rows: list[Row], default: dict[tuple[str, int], Row]) -> dict[tuple[Any, ...], float]:
    """Accuracy minus that of the default on the same model and seed, in points."""
    return {
        _cell(row): 100 * (row["accuracy"] - default[_cell(row)]["accuracy"])
        for row in rows
        if _cell(row) in default
    }


STUDY = Study("methods", __doc__.splitlines()[0], rows, work, score, table)

if __name__ == "__main__":
    main(STUDY)
