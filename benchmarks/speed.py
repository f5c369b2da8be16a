"""Speed and drop of structured specialists over generalists, tasks and seeds, and small models.

Runs the stages of `winnow specialize` without Prefect or MLflow, so that the training half also
runs on a GPU machine; latencies are planned with, and measured on, the machine that serves.

    python benchmarks/speed.py plan --assets DIR --home HOME
    python benchmarks/speed.py profiles --home HOME --generalists DIR --profiles PROFILES
    python benchmarks/speed.py run --home HOME --generalists DIR --profiles PROFILES --out OUT
    python benchmarks/speed.py time --generalists DIR --out OUT                here again
    python benchmarks/speed.py table OUT/rows.jsonl OUT/times.jsonl

`run` leaves every specialist's INT8 file under OUT and one line a specialist in OUT/rows.jsonl;
`time` measures each file against its FP32 generalist in one process, interleaved.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.artifacts import Artifact
    from tasks.config import Recipe

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.pool import run_pool
from benchmarks.speed_times import MINILM, TOKENS, name_of, source_of, speed_table, time_all

SEEDS = (0, 1, 2)
MOBILENET = "mobilenetv2_100-in1k"
VISION_TASKS = ("vehicles", "pets", "wildlife")
TEXT_TASKS = ("banking", "travel", "kitchen_and_dining")
# what is asked of each generalist, over its own FP32 graph
TARGETS: dict[str, dict[str, float]] = {
    "resnet50-tin200": {"speedup": 6},
    "deit_small-tin200": {"speedup": 5},
    "convnext_nano-tin200": {"speedup": 4},
    MOBILENET: {"speedup": 2.5},
    MINILM: {"speedup": 6, "bytes": 6_000_000},
}
# the small dense models that a user would pick instead
SMALL = ("resnet18-tin200", "deit_tiny-tin200")
KEYS = ("generalist", "task", "seed", "pool", "kind")


def grid(
    assets: Path, vision: Sequence[str], texts: Sequence[str]
) -> list[tuple[str, str, list[str], str]]:
    """(generalist, task, classes, data folder), most wanted first."""
    tasks = json.loads((assets / "tasks.json").read_text())
    domains = json.loads((assets / "data" / "clinc150" / "domains.json").read_text())
    large = [name for name in TARGETS if name.endswith("tin200")]
    found = [(g, t, tasks[t], "tiny-imagenet") for t in vision for g in (*large, *SMALL)]
    found += [(MINILM, t, domains[t], "clinc150") for t in texts]
    return [*found, (MOBILENET, "imagenette5", [], "imagenette5")]


def items(
    assets: Path, vision: Sequence[str], texts: Sequence[str], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Every row of the study; sources and PROFILES are filled in by `run`."""
    rows = []
    for pool in (True, False):
        for seed in seeds:
            for generalist, task, classes, folder in grid(assets, vision, texts):
                small = generalist in SMALL
                if small and pool:
                    continue  # fine-tuned on the shots: the pool plays no part
                data = assets / "data" / folder
                recipe: dict[str, Any] = {
                    "name": f"{generalist}-{task}",
                    "generalist": {"source": source_of(generalist, Path("GENERALISTS"))},
                    "task": {
                        "train": str(data / "train.parquet"),
                        "test": str(data / "test.parquet"),
                        "classes": classes,
                        "shots": 16,
                        "seed": seed,
                        "unlabelled": "rest" if pool else None,
                    },
                }
                if not small:
                    recipe["target"] = TARGETS[generalist]
                    recipe["shrink"] = {
                        "profile": f"PROFILES/{generalist}.json",
                        "rungs": 1,
                        "steps": 300 if generalist == MINILM else 800,
                        "generations": 8,
                        "margin": 0.03,
                    }
                    if generalist != MINILM:
                        recipe["distill"] = {"batch_size": 128, "lr": 4e-4}
                    transformer = generalist in (MINILM, "deit_small-tin200")
                    recipe["quantize"] = {
                        "embeddings": "int4" if generalist == MINILM else "none",
                        # what `auto` picks on the machine that serves; another one makes the files
                        "route": "fused" if transformer else "static",
                        "activation": "uint8",
                    }
                    recipe["verify"] = {"tokens": TOKENS if generalist == MINILM else None}
                row = {"generalist": generalist, "task": task, "seed": seed, "pool": pool}
                rows.append({**row, "kind": "small" if small else "shrunk", "recipe": recipe})
    return rows


def plan(args: argparse.Namespace) -> None:
    """Draw the data of every row into HOME, write HOME/plan.json, measure latency tables."""
    os.environ["WINNOW_HOME"] = str(args.home)
    from tasks.config import Recipe
    from tasks.prepare import prepare

    rows = items(args.assets, args.vision, args.texts, args.seeds)
    for row in rows:
        values = json.loads(json.dumps(row["recipe"]).replace("PROFILES/", ""))
        values.get("shrink", {}).pop("profile", None)
        data = prepare.compute(Recipe.model_validate(values))
        row["data"] = data.model_dump()
        print(name_of(row), flush=True)
    (args.home / "plan.json").write_text(json.dumps(rows))


def profiles(args: argparse.Namespace) -> None:
    """Measure a latency table a generalist on this machine, into PROFILES."""
    os.environ["WINNOW_HOME"] = str(args.home)
    from tasks.artifacts import Artifact
    from tasks.export import export
    from tasks.layout import TABLE
    from tasks.load import load
    from tasks.profile import profile
    from tasks.quantize import quantize
    from tasks.teach import teach

    args.profiles.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    for row in json.loads((args.home / "plan.json").read_text()):
        name = row["generalist"]
        if name in seen or row["kind"] != "shrunk" or (args.only and name not in args.only):
            continue
        seen.add(name)
        # times depend on shapes alone, so the teacher's body and the calibration are cut short
        quick = {"shrink.profile": None, "teacher.steps": 0, "prune.samples": 32}
        recipe = _filled(row, args, quick)
        data = Artifact.model_validate(row["data"])
        generalist = load.compute(recipe)
        teacher = teach.compute(recipe, data, generalist)
        models = generalist, teacher, quantize.compute(recipe, data, teacher)
        graphs = [export.compute(recipe, data, model) for model in models]
        table = profile.compute(recipe, data, teacher, *graphs)
        shutil.copy(table.folder / TABLE, args.profiles / f"{name}.json")
        facts = table.metrics
        (args.profiles / f"{name}.facts.json").write_text(json.dumps(facts))
        print(name, facts, f"{table.seconds:.0f} s", flush=True)


def _filled(row: dict[str, Any], args: argparse.Namespace, overrides: dict[str, Any]) -> Any:
    """The row's recipe with its folders and the command line's overrides."""
    from tasks.config import Recipe

    text = json.dumps(row["recipe"])
    values = json.loads(text.replace("PROFILES", str(args.profiles)))
    values["generalist"]["source"] = source_of(row["generalist"], args.generalists)
    for path, value in overrides.items():
        *parents, last = path.split(".")
        at = values
        for part in parents:
            at = at.setdefault(part, {})
        at[last] = value
    return Recipe.model_validate(values)


def specialise(row: dict[str, Any], recipe: Any, jobs: Any) -> None:
    """Teacher, shrinking and quantization of one row; what is left to score becomes a job."""
    from tasks.artifacts import Artifact, publish, workspace
    from tasks.layout import TABLE
    from tasks.load import load
    from tasks.quantize import quantize
    from tasks.shrink import shrink
    from tasks.teach import teach
    from tasks.trim import trim

    started = time.perf_counter()
    data = Artifact.model_validate(row["data"])
    generalist = load.compute(recipe)
    teacher = student = teach.compute(recipe, data, generalist)
    rungs = []
    if row["kind"] == "shrunk":
        with workspace("profile") as folder:
            shutil.copy(recipe.shrink.profile, folder / TABLE)
            key = f"{row['generalist']}-{os.getpid()}-{name_of(row)}"
            facts = Path(recipe.shrink.profile).with_suffix(".facts.json").read_text()
            profile = publish(
                folder, stage="profile", key=key, metrics=json.loads(facts), seconds=0.0
            )
        for step in range(1, recipe.shrink.rungs + 1):
            at = recipe.at_step(step)
            student = shrink.compute(at, data, teacher, student, profile)
            rungs.append({**student.metrics, "seconds": student.seconds})
        if data.metrics["modality"] == "text":
            student = trim.compute(recipe, data, student)
    seconds = {"shrunk": time.perf_counter() - started}
    solved = quantize.compute(recipe, data, student)
    seconds |= {"total": time.perf_counter() - started, "teach": teacher.seconds}
    job = {"recipe": recipe.model_dump(mode="json"), "data": row["data"], "rungs": rungs}
    job |= {key: row[key] for key in KEYS} | {"seconds": seconds}
    job |= {"teacher_model": teacher.model_dump(), "model": solved.model_dump()}
    job["float_accuracy"] = _accuracy(recipe, data, student)
    jobs.put(job)


def _accuracy(recipe: Recipe, data: Artifact, model: Artifact) -> float:
    """Of a float model in torch, to tell what shrinking costs from what INT8 costs."""
    import torch

    from models.checkpoint import load_bundle
    from tasks import batches
    from tasks.splits import load_split

    bundle, at = load_bundle(model.folder), batches.device()
    network = bundle.model.to(at)
    shown = batches.samples(load_split(data.folder / "test.parquet"), bundle, recipe)
    assert shown.labels is not None
    right = 0
    with torch.no_grad():
        for rows in torch.arange(len(shown.labels)).split(250):
            found = network(*shown.batch(rows, device=at)).argmax(1).cpu()
            right += int((found == shown.labels[rows]).sum())
    return right / len(shown.labels)


def score(job: dict[str, Any], out: Path) -> dict[str, Any]:
    """Export teacher and specialist, count what they get right in ONNX Runtime, keep the file."""
    import numpy as np

    from exports.census import census
    from tasks.artifacts import Artifact
    from tasks.config import Recipe
    from tasks.export import export
    from tasks.measure import logits_of
    from tasks.splits import load_split

    recipe = Recipe.model_validate(job.pop("recipe"))
    data = Artifact.model_validate(job.pop("data"))
    started = time.perf_counter()
    test = load_split(data.folder / "test.parquet")
    labels = np.array(test.labels)
    right = {}
    for name in ("teacher_model", "model"):
        graph = export.compute(recipe, data, Artifact.model_validate(job.pop(name)))
        folders = {name: graph.folder}
        right[name] = logits_of(folders, test.inputs)[name].argmax(1) == labels
    counts = census(graph.folder / "model.onnx", graph.json_file("prunable.json"))
    shutil.copy(graph.folder / "model.onnx", out / f"{name_of(job)}.onnx")
    job["seconds"]["export"] = time.perf_counter() - started
    return {
        **job,
        "n": len(labels),
        "teacher": float(right["teacher_model"].mean()),
        "accuracy": float(right["model"].mean()),
        "worse": int((right["teacher_model"] & ~right["model"]).sum()),
        "better": int((~right["teacher_model"] & right["model"]).sum()),
        "bytes": counts["bytes"],
        "nonzero": counts["prunable_nonzero"],
        "export": graph.metrics,
    }


def _work(row: dict[str, Any], jobs: Any, *, args: argparse.Namespace) -> None:
    specialise(row, _filled(row, args, dict(_pair(text) for text in args.set)), jobs)


def _pair(text: str) -> tuple[str, Any]:
    path, _, value = text.partition("=")
    return path, json.loads(value)


def run(args: argparse.Namespace) -> None:
    """Work through HOME/plan.json; rows in OUT/rows.jsonl are done."""
    os.environ["WINNOW_HOME"] = str(args.home)
    args.out.mkdir(parents=True, exist_ok=True)
    written, done = args.out / "rows.jsonl", set()
    if written.exists():
        done = {name_of(json.loads(line)) for line in written.read_text().splitlines()}
    rows = json.loads((args.home / "plan.json").read_text())
    run_pool(
        [r for r in rows if name_of(r) not in done and all(x in name_of(r) for x in args.only)],
        partial(
            _work, args=argparse.Namespace(**{k: v for k, v in vars(args).items() if k != "call"})
        ),
        partial(score, out=args.out),
        written,
        gpus=args.gpus,
        per_gpu=args.per_gpu,
        scorers=args.scorers,
        minutes=args.minutes,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("plan", help="draw the data, measure the latency tables")
    one.add_argument("--assets", type=Path, required=True)
    one.add_argument("--home", type=Path, required=True)
    one.add_argument("--vision", nargs="*", default=VISION_TASKS, help="tasks of tasks.json")
    one.add_argument("--texts", nargs="*", default=TEXT_TASKS, help="CLINC150 domains")
    one.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    one.set_defaults(call=plan)
    half = commands.add_parser("profiles", help="measure the latency tables, here")
    half.add_argument("--home", type=Path, required=True)
    half.add_argument("--generalists", type=Path, required=True)
    half.add_argument("--profiles", type=Path, required=True)
    half.add_argument("--only", nargs="*", default=[], help="generalists")
    half.set_defaults(call=profiles)
    two = commands.add_parser("run", help="make the specialists, count what they get right")
    two.add_argument("--home", type=Path, required=True)
    two.add_argument("--generalists", type=Path, required=True)
    two.add_argument("--profiles", type=Path, required=True, help="latency tables of `plan`")
    two.add_argument("--out", type=Path, required=True)
    two.add_argument("--gpus", default="", help="such as 0,1; empty for the CPU")
    two.add_argument("--per-gpu", type=int, default=1)
    two.add_argument("--scorers", type=int, default=1)
    two.add_argument("--minutes", type=float, default=1e6)
    two.add_argument("--set", nargs="*", default=[], help="recipe values, path=JSON")
    two.add_argument("--only", nargs="*", default=[], help="words that a row's name must hold")
    two.set_defaults(call=run)
    three = commands.add_parser("time", help="measure every file against its generalist")
    three.add_argument("--generalists", type=Path, required=True)
    three.add_argument("--out", type=Path, required=True)
    three.add_argument("--repeats", type=int, default=100)
    three.set_defaults(call=lambda args: time_all(args.out, args.generalists, args.repeats))
    four = commands.add_parser("table", help="print the study as Markdown")
    four.add_argument("results", type=Path, nargs="+", help="rows.jsonl and times.jsonl files")
    four.set_defaults(call=lambda args: print(speed_table(args.results)))
    args = parser.parse_args()
    args.call(args)


if __name__ == "__main__":
    main()
