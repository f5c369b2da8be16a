"""Drop and nonzero ratio of specialists over generalists, tasks, seeds, sparsities and data.

Runs the stages of `winnow specialize` without Prefect or MLflow, so that it also runs on a GPU
machine: the ladder of a recipe passes 50 %, 75 % and 90 %, and each rung is quantized, exported
and scored on the task's test set in ONNX Runtime, as `verify` does.

    python benchmarks/specialists.py plan --assets DIR --home HOME    draws every support set
    python benchmarks/specialists.py run --home HOME --generalists DIR --out results.jsonl
    python benchmarks/specialists.py table results.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.pool import run_pool

RUNGS = (0.5, 0.75, 0.9)
SEEDS = (0, 1, 2)
VISION = ("resnet50-tin200", "convnext_nano-tin200", "deit_small-tin200")
MINILM = "all-MiniLM-L6-v2"


def recipe_of(
    assets: Path, generalist: str, task: str, classes: list[str], seed: int, pool: bool, kind: str
) -> dict[str, Any]:
    """The recipe of one row, as `winnow specialize` would read it."""
    vision = generalist != MINILM
    data = assets / "data" / ("tiny-imagenet" if vision else "clinc150")
    return {
        "name": f"{generalist}-{task}",
        "generalist": {"source": f"timm:local-dir:GENERALISTS/{generalist}"}
        if vision
        else {"source": f"hf:GENERALISTS/{generalist}"},
        "task": {
            "train": str(data / "train.parquet"),
            "test": str(data / "test.parquet"),
            "classes": classes,
            "shots": 16,
            "seed": seed,
            "unlabelled": "rest" if pool else None,
        },
        "prune": {"sparsity": RUNGS[-1], "calibration": kind},
        "distill": {"steps": 150, "labelled_share": 0.5},
    }


def items(assets: Path) -> list[dict[str, Any]]:
    """Every row of the study, most wanted first."""
    tasks = json.loads((assets / "tasks.json").read_text())
    domains = json.loads((assets / "data" / "clinc150" / "domains.json").read_text())
    grid = [(g, t, tasks[t]) for g in VISION for t in ("vehicles", "pets")]
    grid.append((MINILM, "banking", domains["banking"]))
    found = []
    for kind, pool in (("task", True), ("task", False), ("generic", True), ("generic", False)):
        for seed in SEEDS:
            for generalist, task, classes in grid:
                row = {"generalist": generalist, "task": task, "seed": seed, "pool": pool}
                recipe = recipe_of(assets, generalist, task, classes, seed, pool, kind)
                found.append({**row, "calibration": kind, "recipe": recipe})
    return found


def plan(args: argparse.Namespace) -> None:
    """Draw the data of every row into HOME and write HOME/plan.json."""
    os.environ["WINNOW_HOME"] = str(args.home)
    from tasks.config import Recipe
    from tasks.prepare import prepare

    rows = items(args.assets)
    for row in rows:
        data = prepare.compute(Recipe.model_validate(row["recipe"]))
        row["data"] = data.model_dump()
        print(row["generalist"], row["task"], row["seed"], row["pool"], row["calibration"])
    (args.home / "plan.json").write_text(json.dumps(rows))


def specialise(row: dict[str, Any], jobs: Any, *, generalists: Path) -> None:
    """One ladder; every rung, and the teacher, becomes a job for the scorers."""
    from tasks.artifacts import Artifact
    from tasks.config import Recipe
    from tasks.load import load
    from tasks.prune import prune
    from tasks.quantize import quantize
    from tasks.teach import teach

    text = json.dumps(row["recipe"]).replace("GENERALISTS", str(generalists))
    recipe = Recipe.model_validate_json(text)
    data = Artifact.model_validate(row["data"])
    generalist = load.compute(recipe)
    teacher = teach.compute(recipe, data, generalist)
    names = {key: row[key] for key in ("generalist", "task", "seed", "pool", "calibration")}
    job = {"recipe": recipe.model_dump(mode="json"), "data": row["data"], **names}
    job["teacher"] = teacher.model_dump()
    jobs.put({**job, "sparsity": 0.0, "model": teacher.model_dump()})
    student = teacher
    for rung in recipe.rungs:
        if row["calibration"] == "generic" and rung > 0.75:
            break  # the comparison is made at 75 %
        step = recipe.at_rung(rung)
        student = prune.compute(step, data, teacher, student)
        solved = quantize.compute(step, data, student)
        facts = {"sparsity": rung, "rung": student.metrics, "seconds": student.seconds}
        jobs.put({**job, **facts, "model": solved.model_dump()})


def score(job: dict[str, Any]) -> dict[str, Any]:
    """Export one model and count what it gets right, in ONNX Runtime."""
    import numpy as np

    from exports.census import census
    from tasks.artifacts import Artifact
    from tasks.config import Recipe
    from tasks.export import export
    from tasks.measure import logits_of
    from tasks.splits import load_split

    recipe = Recipe.model_validate(job.pop("recipe"))
    data = Artifact.model_validate(job.pop("data"))
    model, teacher = (Artifact.model_validate(job.pop(key)) for key in ("model", "teacher"))
    graph = export.compute(recipe, data, model)
    test = load_split(data.folder / "test.parquet")
    logits = logits_of({"model": graph.folder}, test.inputs)["model"]
    right = logits.argmax(1) == np.array(test.labels)
    counts = census(graph.folder / "model.onnx", graph.json_file("prunable.json"))
    facts = {"teacher": teacher.sha256, "n": len(right), "accuracy": float(right.mean())}
    ratio = counts["prunable"] / max(1, counts["prunable_nonzero"])
    return {**job, **facts, "nonzero_ratio": ratio, "bytes": counts["bytes"]}


def run(args: argparse.Namespace) -> None:
    """Work through HOME/plan.json; finished stages in HOME are reused."""
    os.environ["WINNOW_HOME"] = str(args.home)
    rows, done = [], set()
    if args.out.exists():
        done = {_name(json.loads(line)) for line in args.out.read_text().splitlines()}
    for row in json.loads((args.home / "plan.json").read_text()):
        if args.steps is not None:
            row["recipe"]["distill"]["steps"] = args.steps
        if args.teacher_steps is not None:
            row["recipe"]["teacher"] = {"steps": args.teacher_steps}
        if args.sparsity is not None:
            row["recipe"]["prune"]["sparsity"] = args.sparsity
        last = 0.75 if row["calibration"] == "generic" else row["recipe"]["prune"]["sparsity"]
        wanted = all(part in map(str, _name(row)) for part in args.only)
        if wanted and (*_name(row)[:-1], last) not in done:
            rows.append(row)
    run_pool(
        rows,
        partial(specialise, generalists=args.generalists),
        score,
        args.out,
        gpus=args.gpus,
        per_gpu=args.per_gpu,
        scorers=args.scorers,
        minutes=args.minutes,
    )


def _name(row: dict[str, Any]) -> tuple[Any, ...]:
    keys = ("generalist", "task", "seed", "pool", "calibration", "sparsity")
    return tuple(row.get(key) for key in keys)


def table(args: argparse.Namespace) -> None:
    """Print the study as Markdown."""
    import numpy as np

    rows = {}
    for path in args.results:
        for line in path.read_text().splitlines():
            row = json.loads(line)
            rows[_name(row)] = row
    found: dict[Any, dict[Any, list[float]]] = defaultdict(lambda: defaultdict(list))
    ratios: dict[Any, list[float]] = defaultdict(list)
    for name, row in rows.items():
        base = rows.get((*name[:-1], 0.0))
        if base is None or not name[-1]:
            continue
        generalist, task, _, pool, kind, sparsity = name
        found[generalist, task, pool, kind][sparsity].append(base["accuracy"] - row["accuracy"])
        found["all of the above", "", pool, kind][sparsity].append(
            base["accuracy"] - row["accuracy"]
        )
        ratios[sparsity].append(row["nonzero_ratio"])
    print("Drop in points, teacher minus INT8 specialist; mean (standard deviation; runs).\n")
    rungs = [s for s in RUNGS if ratios[s]]
    heads = [f"{s:.0%} ({np.mean(ratios[s]):.1f}x)" for s in rungs]
    print("| generalist | task | unlabelled | calibration | " + " | ".join(heads) + " |")
    print("|---|---|---|---|" + "---|" * len(heads))
    for (generalist, task, pool, kind), drops in sorted(
        found.items(), key=lambda item: (item[0][0] == "all of the above", str(item[0]))
    ):
        cells = []
        for sparsity in rungs:
            d = 100 * np.array(drops.get(sparsity, []))
            spread = d.std(ddof=1) if len(d) > 1 else 0.0
            cells.append(f"{d.mean():.2f} ({spread:.2f}; {len(d)})" if len(d) else "")
        shown = "rest" if pool else "none"
        print(f"| {generalist} | {task} | {shown} | {kind} | " + " | ".join(cells) + " |")
    teachers: dict[str, dict[Any, float]] = defaultdict(dict)
    for name, row in rows.items():
        if name[-1] == 0:
            teachers[f"{name[0]} {name[1]}"][name[2]] = row["accuracy"]
    means = [f"{key} {np.mean([*found.values()]):.3f}" for key, found in sorted(teachers.items())]
    print(f"\nTeachers, mean over seeds: {'; '.join(means)}.\n")
    for pool in (True, False):
        gains = [
            100 * (row["accuracy"] - rows[(*name[:4], "generic", name[5])]["accuracy"])
            for name, row in rows.items()
            if name[3:] == (pool, "task", 0.75) and (*name[:4], "generic", name[5]) in rows
        ]
        if len(gains) > 1:
            mean, error = np.mean(gains), np.std(gains, ddof=1) / len(gains) ** 0.5
            print(
                f"Task-aware minus generic calibration at 75 %, unlabelled "
                f"{'rest' if pool else 'none'}: {mean:+.2f} points "
                f"(standard error {error:.2f}, {len(gains)} pairs)"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("plan")
    one.add_argument("--assets", type=Path, required=True)
    one.add_argument("--home", type=Path, required=True)
    one.set_defaults(call=plan)
    two = commands.add_parser("run")
    two.add_argument("--home", type=Path, required=True)
    two.add_argument("--generalists", type=Path, required=True)
    two.add_argument("--out", type=Path, required=True)
    two.add_argument("--gpus", default="", help="such as 0,1,2; empty for the CPU")
    two.add_argument("--per-gpu", type=int, default=1)
    two.add_argument("--scorers", type=int, default=1)
    two.add_argument("--minutes", type=float, default=1e6)
    two.add_argument("--steps", type=int, help="distillation steps of a half-dense model")
    two.add_argument("--teacher-steps", type=int, help="fine-tuning steps of the teacher's body")
    two.add_argument("--sparsity", type=float, help="where the ladders end, 0.9 if left out")
    two.add_argument("--only", nargs="*", default=[], help="words that a row's name must hold")
    two.set_defaults(call=run)
    three = commands.add_parser("table")
    three.add_argument("results", type=Path, nargs="+")
    three.set_defaults(call=table)
    args = parser.parse_args()
    args.call(args)


if __name__ == "__main__":
    main()
