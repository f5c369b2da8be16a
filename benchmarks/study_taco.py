"""TACO's claims: task-aware calibration, the ladder, shots, sparsities, five models, allocation.

After Kurtic, Hoefler and Alistarh, "TACO: Task-Aware COmpression" (arXiv 2303.14409). Five models,
three tasks each (one for MobileNetV2), seeds 0 to 2, single weights pruned, float32 graphs (what
INT8 adds is `study_interplay.py`'s question), scored in ONNX Runtime on the whole test set.

    python benchmarks/study_taco.py plan|pack|run|table ...  (benchmarks/studies/command.py)

Blocks, most wanted first; a machine that ends early leaves whole blocks:

    calibration      one shot, no recovery: task-aware against generic inputs, equal samples
    allocation       one shot, no recovery: every allocation against uniform
    frontier-pool    ladder to 95 % with the unlabelled pool, uneven allocation
    frontier-long    the same to 90 % with four times the training
    frontier-shots   ladder with the shots alone, to 90 % in every cell and then to 95 %
    recovered        ladder to 90 %, shots alone, generic inputs, against frontier-shots
    one-shot         90 % at once with the whole ladder's training, pool, against frontier-pool
    uniform-pool     ladder to 90 % with the pool, uniform allocation, against frontier-pool
    few-and-many     ladder to 90 %, 4 and 64 shots alone; with the pool, seed 0
    recovered-pool   ladder to 90 %, pool, generic inputs, against frontier-pool

The first two come twice: what the claims need (75 and 90 %; evolutionary and dynamic at 90 %) at
the beginning, the rest at the end. The ladders take the dynamic program's allocation: it looks at
the model twice a layer, evolution hundreds of times a rung.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.config import Recipe

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.studies.command import Study, main
from benchmarks.studies.grid import (
    GENERIC,
    NO_POOL,
    Row,
    accepted,
    at_path,
    first_accepted,
    grid,
    merged,
    recipe_of,
)
from benchmarks.studies.scoring import begin, job_of, score
from benchmarks.studies.taco_tables import ALLOCATIONS, LADDER, picture, table

STEPS = 150
ON_LADDERS = ("dynamic", "evolutionary", "uniform")


def row_of(
    block: str,
    model: str,
    task: str,
    seed: int,
    *,
    to: float,
    shots: int = 16,
    pool: bool = False,
    calibration: str = "task",
    allocation: str | None = None,
    schedule: str = "ladder",
    steps: int = STEPS,
) -> Row:
    """One row; `schedule` is ladder, one-shot (with the ladder's training) or bare (with none)."""
    passed = tuple(rung for rung in LADDER if rung <= to)
    prune: dict[str, Any] = {"sparsity": to, "calibration": calibration}
    if allocation is not None and allocation != "uniform":
        prune["allocation"] = allocation
    if schedule == "one-shot":
        # a rung at sparsity r takes steps / (2 (1 - r)): the sum over the ladder, all in the last
        steps = round(steps * sum(1 / (1 - rung) for rung in passed) * (1 - to))
    distill: dict[str, Any] = {"steps": 0 if schedule == "bare" else steps, "labelled_share": 0.5}
    distill["rungs"] = list(passed) if schedule == "ladder" else [to]
    data: dict[str, Any] = {}
    if calibration == "generic" and task in GENERIC:
        data = {"task": {"generic": f"SOURCES/{GENERIC[task]}/train.parquet"}}
    recipe = recipe_of(model, task, shots=shots, seed=seed, pool=pool, prune=prune, distill=distill)
    allocation = allocation or "uniform"
    where = f"taco/{block}/{model}/{task}/s{seed}/{shots}-{'pool' if pool else 'shots'}"
    name = f"{where}/{calibration}-{allocation}-{schedule}"
    points = passed if schedule == "ladder" else (to,)
    return {
        "id": f"{name}/to-{to:g}",
        "name": name,
        "ids": [f"{name}/{rung:g}" for rung in points],
        "block": block,
        "model": model,
        "task": task,
        "seed": seed,
        "shots": shots,
        "pool": pool,
        "calibration": calibration,
        "allocation": allocation,
        "schedule": schedule,
        "recipe": merged(recipe, data),
    }


def rows(args: argparse.Namespace) -> list[Row]:
    """All rows, most wanted first."""
    cells, found = grid(args), []
    one = partial(row_of, steps=STEPS if args.steps is None else args.steps)
    best = first_accepted("prune.allocation", ON_LADDERS)
    calibrated = partial(one, "calibration", schedule="bare")
    allocated = partial(one, "allocation", schedule="bare")
    others = [x for x in ALLOCATIONS[:-1] if accepted(at_path("prune.allocation", x))]
    for model, task, seed in cells:
        for to in (0.75, 0.9):
            for kind in ("task", "generic"):
                found.append(calibrated(model, task, seed, to=to, calibration=kind))
    for model, task, seed in cells:
        for allocation in [x for x in others if x in ON_LADDERS]:
            found.append(allocated(model, task, seed, to=0.9, allocation=allocation))
    for model, task, seed in cells:
        found.append(one("frontier-pool", model, task, seed, to=0.95, pool=True, allocation=best))
    longer = partial(one, "frontier-long", to=0.9, pool=True, allocation=best)
    for model, task, seed in cells:
        found.append(longer(model, task, seed, steps=4 * one.keywords["steps"]))
    for to in (0.9, 0.95):  # the second ladder finds the rungs of the first in the store
        for model, task, seed in cells:
            found.append(one("frontier-shots", model, task, seed, to=to, allocation=best))
    for model, task, seed in cells:
        found.append(
            one("recovered", model, task, seed, to=0.9, calibration="generic", allocation=best)
        )
    for model, task, seed in cells:
        found.append(
            one(
                "one-shot",
                model,
                task,
                seed,
                to=0.9,
                pool=True,
                allocation=best,
                schedule="one-shot",
            )
        )
    for model, task, seed in cells:
        if best not in (None, "uniform"):
            found.append(one("uniform-pool", model, task, seed, to=0.9, pool=True))
    for model, task, seed in cells:
        for shots in (4, 64):
            for pool in (True, False):
                if not pool or (seed == 0 and (task, shots) not in NO_POOL):
                    found.append(
                        one(
                            "few-and-many",
                            model,
                            task,
                            seed,
                            to=0.9,
                            shots=shots,
                            pool=pool,
                            allocation=best,
                        )
                    )
    for model, task, seed in cells:
        found.append(
            one(
                "recovered-pool",
                model,
                task,
                seed,
                to=0.9,
                pool=True,
                calibration="generic",
                allocation=best,
            )
        )
    for model, task, seed in cells:
        for kind in ("task", "generic"):
            found.append(calibrated(model, task, seed, to=0.5, calibration=kind))
    for model, task, seed in cells:
        for to, names in ((0.9, [x for x in others if x not in ON_LADDERS]), (0.75, others)):
            for allocation in names:
                found.append(allocated(model, task, seed, to=to, allocation=allocation))
    return found


def work(row: Row, recipe: Recipe, jobs: Any) -> None:
    """One ladder, or one leap; every rung becomes a job for the scorers."""
    from tasks.prune import prune

    data, _, teacher = begin(row, recipe)
    student, seconds = teacher, 0.0
    for rung in recipe.rungs:
        student = prune.compute(recipe.at_rung(rung), data, teacher, student)
        seconds += student.seconds
        facts = {"id": f"{row['name']}/{rung:g}", "sparsity": rung, "seconds": seconds}
        rung_told = {key: value for key, value in student.metrics.items() if key != "dense"}
        jobs.put(job_of(row, recipe, data, teacher, student, **facts, rung=rung_told))


STUDY = Study("taco", __doc__.splitlines()[0], rows, work, score, table, picture)

if __name__ == "__main__":
    main(STUDY)
