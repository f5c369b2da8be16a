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
    python benchmarks/study_peers.py time --home HOME --out FILE   once nothing else runs

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
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.artifacts import Artifact
    from tasks.config import Recipe

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.studies.command import Study, main
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
from benchmarks.studies.models import made, narrowed, recovered
from benchmarks.studies.planning import ROOT, folder_of
from benchmarks.studies.scoring import begin, compared, job_of, score
from benchmarks.studies.tables import interval, markdown, read, told_of

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
        folder = _setfit(row, recipe, data, most)
        told = job_of(row, recipe, data, teacher, teacher, max_steps=most)
        jobs.put({**told, "answers": str(folder)})
        return
    if method.startswith("torch-pruning"):
        ours = narrowed(recipe, data, teacher, SHARE)
        graph = _torch_pruning(recipe, data, teacher, ours, steps if "recovered" in method else 0)
        jobs.put({**job_of(row, recipe, data, teacher, teacher), "graph": graph.model_dump()})
        return
    if method.startswith("onnxruntime"):
        graph = _onnxruntime(recipe, data, teacher, method.rpartition("-")[2])
        jobs.put({**job_of(row, recipe, data, teacher, teacher), "graph": graph.model_dump()})
        return
    if method.startswith(("small-dense", "ours-int8")):
        model = teacher
    elif method.startswith("depth"):
        model = _shallow(recipe, data, teacher)
    else:
        _, how, update = [*method.split("-"), "", ""][:3]
        how, update = (how, update) if method.startswith("score") else ("obs", "obs")
        model = narrowed(recipe, data, teacher, SHARE, score=how, update=update == "obs")
    if "recovered" in method:
        model = recovered(recipe, data, teacher, model, steps)
    if method.endswith("int8"):
        model = quantize.compute(recipe, data, model)
    jobs.put(job_of(row, recipe, data, teacher, model))


def weights_of(model: Artifact) -> int:
    """Weights of the Linear and Conv2d layers of a bundle."""
    from torch import nn

    from models.checkpoint import load_bundle

    parts = load_bundle(model.folder).model.modules()
    return sum(x.weight.numel() for x in parts if isinstance(x, nn.Linear | nn.Conv2d))


def _shallow(recipe: Recipe, data: Artifact, teacher: Artifact) -> Artifact:
    """Whole branches gone, to at most the weights that half the width leaves."""
    limit = weights_of(narrowed(recipe, data, teacher, SHARE))

    def make(folder: Path) -> dict[str, Any]:
        import torch

        from compression.losses import temperature_kl
        from models import shrinking
        from models.checkpoint import load_bundle, save_bundle
        from models.units import branches
        from tasks import batches

        at = batches.device()
        bundle = load_bundle(teacher.folder)
        found = [b for b in branches(bundle.model, batches.blank(bundle)) if b.removable]
        batch = next(iter(batches.calibration(recipe, data, bundle, generic=False, at=at)()))

        def without(gone: list[Any]) -> Any:
            return shrinking.shrink(bundle, {u.name: [] for b in gone for u in b.units})

        def run(model: Any) -> torch.Tensor:
            with torch.no_grad():
                return model.to(at)(*batch)

        target = run(without([]).model)
        harm = {b.name: float(temperature_kl(run(without([b]).model), target, 1.0)) for b in found}
        gone: list[Any] = []
        for branch in sorted(found, key=lambda b: harm[b.name]):
            gone.append(branch)
            smaller = without(gone)
            left = sum(
                x.weight.numel()
                for x in smaller.model.modules()
                if isinstance(x, torch.nn.Linear | torch.nn.Conv2d)
            )
            if left <= limit:
                break
        smaller.model = smaller.model.cpu()
        save_bundle(smaller, folder)
        return {"gone": [branch.name for branch in gone], "weights": left, "limit": limit}

    return made("narrowed", {"depth": limit}, make, data, teacher)


def _peer(script: str, job: dict[str, Any], folder: Path) -> None:
    """Run one of benchmarks/peers in the peers' environment."""
    python = os.environ.get("PEER_PYTHON")
    if not python:
        raise RuntimeError("PEER_PYTHON names no interpreter (benchmarks/peers.txt)")
    told = folder / "job.json"
    told.write_text(json.dumps(job))
    found = subprocess.run(
        [python, str(ROOT / "benchmarks" / "peers" / script), str(told), str(folder)],
        capture_output=True,
        text=True,
    )
    if found.returncode:
        raise RuntimeError(f"{script}: {found.stderr.strip()[-400:]}")


def _torch_pruning(
    recipe: Recipe, data: Artifact, teacher: Artifact, ours: Artifact, steps: int
) -> Artifact:
    job = {
        "recipe": recipe.model_dump(mode="json"),
        "data": data.model_dump(),
        "steps": steps,
        "teacher": teacher.model_dump(),
        "weights": weights_of(ours),
    }

    def make(folder: Path) -> dict[str, Any]:
        _peer("torch_pruning_teacher.py", job, folder)
        return dict(json.loads((folder / "facts.json").read_text()))

    return made("peer", {"torch-pruning": steps, "weights": job["weights"]}, make, data, teacher)


def _setfit(row: Row, recipe: Recipe, data: Artifact, most: int) -> Path:
    name = recipe.generalist.source
    model = name.partition(":")[2]
    if name.startswith("hf:package:"):
        model = str(folder_of(MINILM, Path("nowhere")))
    job = {
        "folder": str(data.folder),
        "model": model,
        "seed": row["seed"],
        "max_steps": most,
    }

    def make(folder: Path) -> dict[str, Any]:
        _peer("setfit_shots.py", job, folder)
        return dict(json.loads((folder / "facts.json").read_text()))

    return made("peer", {"setfit": job["max_steps"], "seed": row["seed"]}, make, data).folder


def _onnxruntime(recipe: Recipe, data: Artifact, teacher: Artifact, how: str) -> Artifact:
    """The teacher's float graph through ONNX Runtime's quantizer, all defaults."""
    from tasks.export import export

    graph = export.compute(recipe, data, teacher)

    def make(folder: Path) -> dict[str, Any]:
        import torch
        from onnxruntime.quantization import (
            CalibrationDataReader,
            quantize_dynamic,
            quantize_static,
        )

        from models.checkpoint import load_bundle
        from tasks import batches

        for path in graph.folder.iterdir():
            if path.name in ("preprocess.json", "tokenizer.json", "prunable.json"):
                shutil.copy(path, folder / path.name)
        source, target = str(graph.folder / "model.onnx"), str(folder / "model.onnx")
        if how == "dynamic":
            quantize_dynamic(source, target)
            return {}
        bundle = load_bundle(teacher.folder)
        shown = batches.calibration(recipe, data, bundle, generic=False, at=torch.device("cpu"))()
        names = batches.INPUTS[bundle.modality]

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                self.feeds = batches.feeds(shown, names)

            def get_next(self) -> Any:
                return next(self.feeds, None)

        quantize_static(source, target, Reader())
        return {}

    return made("peer", {"onnxruntime": how}, make, data, graph)


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


# --- time, on the machine that has nothing else to do ---------------------------------------------


def time_graphs(args: argparse.Namespace) -> None:
    """One thread, batch 1, interleaved with the teacher's float graph; first seed, first task."""
    os.environ["WINNOW_HOME"] = str(args.home.resolve())
    import numpy as np

    from exports.latency import interleaved
    from exports.runtime import session
    from tasks.home import store

    found = [row for row in read([args.out], failures=False) if row.get("graph")]
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in found:
        if row["seed"] == 0 and row["task"] == TASKS[row["model"]][0] and row["method"] in TIMED:
            groups[row["model"], row["task"]].append(row)
    for (model, _), members in groups.items():
        dense = next((row["teacher_graph"] for row in members if "teacher_graph" in row), None)
        if dense is None:
            continue
        paths = {row["method"]: store() / row["graph"] / "model.onnx" for row in members}
        paths["teacher"] = store() / dense / "model.onnx"
        opened = {name: session(path, 1) for name, path in paths.items()}
        feeds: dict[str, dict[str, Any]] = {}
        for name, each in opened.items():
            feeds[name] = {}
            for x in each.get_inputs():
                shape = [
                    n if isinstance(n, int) else at
                    for n, at in zip(x.shape, (1, 32, 0, 0), strict=False)
                ]
                kind = np.float32 if "float" in x.type else np.int64
                feeds[name][x.name] = np.ones(shape, kind)
        times = interleaved(opened, feeds, warmup=10, repeats=args.repeats, seed=0)
        with args.out.open("a") as out:
            for row in members:
                ratio, low, high = times.ratio("teacher", row["method"])
                told = {
                    key: row[key]
                    for key in (
                        "model",
                        "task",
                        "seed",
                        "method",
                        "device",
                        "machine",
                        "commit",
                        "study",
                    )
                }
                line = {
                    "id": f"peers-time/{model}/{row['method']}",
                    "block": "time",
                    **told,
                    "speed": ratio,
                    "speed_low": low,
                    "speed_high": high,
                    "milliseconds": times.median_ms[row["method"]],
                    "spread": times.spread(row["method"]),
                    "command": "python benchmarks/study_peers.py time --home HOME --out FILE",
                }
                out.write(json.dumps(line) + "\n")
                print(f"{model} {row['method']}: {ratio:.2f}x [{low:.2f}, {high:.2f}]", flush=True)


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
    return "\n\n".join(parts)


STUDY = Study("peers", __doc__.splitlines()[0], rows, work, score_peer, table)

if __name__ == "__main__":
    if sys.argv[1:2] == ["time"]:
        parser = argparse.ArgumentParser(description="Measure every graph of the first seed.")
        parser.add_argument("time")
        parser.add_argument("--home", type=Path, required=True)
        parser.add_argument("--out", type=Path, required=True)
        parser.add_argument("--repeats", type=int, default=100)
        time_graphs(parser.parse_args())
    else:
        main(STUDY)
