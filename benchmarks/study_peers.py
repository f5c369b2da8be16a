"""winnow beside what a user would take instead: on the same model, shots and machine, in one run.

Each row is one method on one (model, task, seed), 16 shots and the unlabelled pool:

    ours-*               half of the heads, neurons and channels left; then STEPS steps of recovery;
                         then INT8; and INT8 alone on the teacher
    score-*              the same half chosen by other scores, with and without the update of what
                         stays, before recovery and after it; depth: whole branches in place of
                         width, those whose loss moves the answers least, to as many weights
    torch-pruning-*      Torch-Pruning's DepGraph with group L2 magnitude, as many weights left as
                         ours, before and after the same recovery (without SquareHead: its features
                         are narrower)
    onnxruntime-*        quantize_static and quantize_dynamic with their defaults on the teacher's
                         graph, against our INT8 of the same teacher
    small-dense          ResNet-18 for ResNet-50, DeiT-Ti for DeiT-S, adapted to the same shots;
                         and in INT8
    setfit               SetFit with its defaults (MiniLM), text

llm-compressor's SparseGPT is compared layer by layer in `benchmarks/solver_speed.py`.

    python benchmarks/study_peers.py plan|pack|run|table ...  (benchmarks/studies/command.py)
    python benchmarks/study_peers.py time --home HOME --rows FILE --out TIMES   when all is quiet

The peers live in an environment of their own (benchmarks/peers.txt), named by the environment
variable PEER_PYTHON; without it their rows fail and say so. `time` measures every graph of the
first seed against its teacher's float graph, one thread, interleaved, and appends rows. A row takes
10 to 60 s on an H200 with six processes (SetFit longer): 5 models, 13 tasks' cells, 3 seeds, about
14 methods are 500 rows, 12,000 process seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.config import Recipe

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.studies.command import Study, main, one_line
from benchmarks.studies.graph_times import time_graphs
from benchmarks.studies.grid import (
    DEIT,
    MINILM,
    RESNET,
    TASKS,
    Row,
    accepted,
    at_path,
    grid,
    merged,
    recipe_of,
)
from benchmarks.studies.models import narrowed, recovered
from benchmarks.studies.peer_models import onnxruntime, setfit, shallow, torch_pruning
from benchmarks.studies.scoring import begin, compared, job_of, score
from benchmarks.studies.tables import interval, markdown, told_of

STEPS = 300
SHARE = 0.5
SMALL = {RESNET: "resnet18-tin200", DEIT: "deit_tiny-tin200"}
SCORES = ("magnitude", "activation", "trajectory")
OURS = ("ours-half", "ours-half-recovered", "ours-half-recovered-int8", "ours-int8")
TIMED = (
    "ours-half-recovered",
    "ours-half-recovered-int8",
    "ours-int8",
    "onnxruntime-static",
    "onnxruntime-dynamic",
    "torch-pruning-recovered",
    "small-dense",
    "small-dense-int8",
    "depth-recovered",
)


def methods(model: str) -> list[str]:
    """Of one model, most wanted first."""
    found = [
        *OURS,
        "torch-pruning",
        "torch-pruning-recovered",
        "onnxruntime-static",
        "onnxruntime-dynamic",
    ]
    if model in SMALL:
        found += ["small-dense", "small-dense-int8"]
    if model == MINILM:
        found.append("setfit")
    for name in SCORES:
        if accepted(at_path("shrink.score", name)):
            found += [
                f"score-{name}-{update}{end}"
                for update in ("none", "obs")
                for end in ("", "-recovered")
            ]
    if accepted(at_path("shrink.update", "none")):
        found += ["score-obs-none", "score-obs-none-recovered"]
    return [*found, "depth", "depth-recovered"]


def rows(args: argparse.Namespace) -> list[Row]:
    """All rows: whole seeds first, all methods of a model and task together."""
    return [
        row_of(model, task, seed, method, STEPS if args.steps is None else args.steps)
        for model, task, seed in grid(args)
        for method in methods(model)
    ]


def row_of(model: str, task: str, seed: int, method: str, steps: int) -> Row:
    """One row."""
    name = f"peers/{model}/{task}/s{seed}/{method}"
    transformer = model in (MINILM, DEIT)
    recipe = recipe_of(
        model,
        task,
        seed=seed,
        pool=True,
        distill={"labelled_share": 0.5},
        quantize={
            "format": "int8",
            "route": "fused" if transformer else "static",
            "activation": "uint8",
            "calibration_report": 0,
        },
    )
    source = {"generalist": {"source": f"GENERALISTS/{SMALL.get(model)}"}}
    return {
        "id": name,
        "ids": [name],
        "block": "peers",
        "model": model,
        "task": task,
        "seed": seed,
        "method": method,
        "steps": steps,
        "also": [SMALL[model]] if model in SMALL else [],
        "recipe": merged(recipe, source) if method.startswith("small-dense") else recipe,
    }


def work(row: Row, recipe: Recipe, jobs: Any) -> None:
    """One method."""
    from tasks.quantize import quantize

    method, steps = row["method"], row["steps"]
    data, _, teacher = begin(row, recipe)
    if method == "setfit":
        most = int(os.environ.get("SETFIT_STEPS", "-1"))  # its default: an epoch; told in the row
        folder = setfit(row, recipe, data, most)
        told = job_of(row, recipe, data, teacher, teacher, max_steps=most)
        jobs.put({**told, "answers": str(folder)})
        return
    if method.startswith("torch-pruning"):
        ours = narrowed(recipe, data, teacher, SHARE)
        graph = torch_pruning(recipe, data, teacher, ours, steps if "recovered" in method else 0)
        jobs.put({**job_of(row, recipe, data, teacher, teacher), "graph": graph.model_dump()})
        return
    if method.startswith("onnxruntime"):
        graph = onnxruntime(recipe, data, teacher, method.rpartition("-")[2])
        jobs.put({**job_of(row, recipe, data, teacher, teacher), "graph": graph.model_dump()})
        return
    if method.startswith(("small-dense", "ours-int8")):
        model = teacher
    elif method.startswith("depth"):
        model = shallow(recipe, data, teacher, SHARE)
    else:
        _, how, update = [*method.split("-"), "", ""][:3]
        how, update = (how, update) if method.startswith("score") else ("obs", "obs")
        model = narrowed(recipe, data, teacher, SHARE, score=how, update=update == "obs")
    if "recovered" in method:
        model = recovered(recipe, data, teacher, model, steps)
    if method.endswith("int8"):
        model = quantize.compute(recipe, data, model)
    jobs.put(job_of(row, recipe, data, teacher, model))


def score_peer(job: Row) -> Row:
    """As every study, but for what is no bundle: a graph that a peer made, or its answers."""
    if "failed" in job or not {"graph", "answers"} & set(job):
        return score(job)
    import numpy as np

    from benchmarks.studies.scoring import answers
    from tasks.artifacts import Artifact
    from tasks.config import Recipe
    from tasks.export import export
    from tasks.splits import load_split

    recipe = Recipe.model_validate(job.pop("recipe"))
    data = Artifact.model_validate(job.pop("data"))
    teacher = Artifact.model_validate(job.pop("teacher_model"))
    job.pop("student_model")
    test = load_split(data.folder / "test.parquet")
    dense = answers(export.compute(recipe, data, teacher), test.inputs)
    if "answers" in job:
        folder = Path(job.pop("answers"))
        found = np.log(np.load(folder / "answers.npy").clip(1e-12))
        size = json.loads((folder / "facts.json").read_text())["bytes"]
        return {**job, **compared(dense, found, np.array(test.labels)), "bytes": size}
    graph = Artifact.model_validate(job.pop("graph"))
    found = answers(graph, test.inputs)
    size = (graph.folder / "model.onnx").stat().st_size
    facts = {"bytes": size, "graph": graph.path, "made": graph.metrics}
    return {**job, **compared(dense, found, np.array(test.labels)), **facts}


def table(found: list[Row]) -> str:
    """The study as Markdown: accuracy beside the teacher's, size and time, a table a model."""
    parts = [told_of([row for row in found if row["block"] != "time"])]
    speeds = {(row["model"], row["method"]): row for row in found if row["block"] == "time"}
    fine = [row for row in found if "failed" not in row and row["block"] == "peers"]
    for model in TASKS:
        ours = [row for row in fine if row["model"] == model]
        if not ours:
            continue
        by: dict[str, dict[tuple[str, int], Row]] = defaultdict(dict)
        for row in ours:
            by[row["method"]][row["task"], row["seed"]] = row
        reference = by.get("ours-half-recovered", {})
        teachers = {
            at: row["teacher"]
            for rows_ in by.values()
            for at, row in rows_.items()
            if not row["method"].startswith("small-dense")
        }
        lines = []
        for method in [name for name in methods(model) if name in by]:
            cells = by[method]
            drops = [
                100 * (teachers[at] - row["accuracy"])
                for at, row in cells.items()
                if at in teachers
            ]
            against = [
                100 * (row["accuracy"] - reference[at]["accuracy"])
                for at, row in cells.items()
                if at in reference
            ]
            size = sum(row["bytes"] for row in cells.values()) / len(cells) / 1e6
            timed = speeds.get((model, method))
            speed = (
                ""
                if timed is None
                else (
                    f"{timed['speed']:.2f}x [{timed['speed_low']:.2f}, {timed['speed_high']:.2f}]"
                )
            )
            accuracy = interval([100 * row["accuracy"] for row in cells.values()])
            lines.append(
                (
                    method,
                    str(accuracy),
                    str(interval(drops)),
                    f"{size:.1f}",
                    speed,
                    "" if method == "ours-half-recovered" else str(interval(against)),
                )
            )
        heads = (
            "method",
            "accuracy [95 %] (runs)",
            "drop from the teacher",
            "MB",
            "speed over the teacher's FP32",
            "minus ours-half-recovered",
        )
        parts += [f"**{model}**, points:", markdown(heads, lines)]
    if speeds:
        parts += [_times(list(speeds.values()))]
    return "\n\n".join(parts)


def _times(rows: list[Row]) -> str:
    """Speed over the teacher's FP32 graph, a column a model."""
    models = [model for model in TASKS if any(row["model"] == model for row in rows)]
    cells = {
        (row["method"], row["model"]): f"{row['speed']:.2f} [{row['speed_low']:.2f}, "
        f"{row['speed_high']:.2f}]"
        for row in rows
    }
    lines = [
        (method, *(cells.get((method, model), "") for model in models))
        for method in TIMED
        if any((method, model) in cells for model in models)
    ]
    steps = ", ".join(str(n) for n in sorted({row["steps"] for row in rows}))
    machines = "; ".join(sorted({f"{r['device']}, commit {r['commit']}" for r in rows}))
    told = (
        f"Times over the teacher's FP32 graph, one thread, batch 1, interleaved; seed 0 of the "
        f"first task, graphs made with {steps} steps of recovery, which shapes do not depend on "
        f"({machines}):"
    )
    return f"{told}\n\n{markdown(('method', *models), lines)}"


STUDY = Study("peers", __doc__.splitlines()[0], rows, work, score_peer, table)

if __name__ == "__main__":
    if sys.argv[1:2] == ["time"]:
        parser = argparse.ArgumentParser(description="Measure every graph of the first seed.")
        parser.add_argument("time")
        parser.add_argument("--home", type=Path, required=True)
        parser.add_argument("--rows", type=Path, required=True, help="what `run` wrote")
        parser.add_argument("--out", type=Path, required=True, help="JSON lines, appended to")
        parser.add_argument("--repeats", type=int, default=100)
        with one_line(STUDY.name):
            time_graphs(parser.parse_args(), TIMED)
    else:
        main(STUDY)
