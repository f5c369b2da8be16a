"""What the studies of methods share: models and tasks, a plan in order of want, a pool, intervals.

A study is a module with a list of rows, `benchmarks/study_*.py`. Each is the same four commands:

    python benchmarks/study_taco.py plan --assets DIR --home HOME [--steps N] [--set a.b=JSON]
    python benchmarks/study_taco.py pack --home HOME --generalists DIR --out FOLDER
    python benchmarks/study_taco.py run --home HOME --generalists DIR --out FILE.jsonl \\
        [--gpus 0,1 --per-gpu 6 --scorers 12 --minutes 7] [--only WORD...]
    python benchmarks/study_taco.py table FILE.jsonl... [--picture FILE.png]

`plan` writes HOME/plan.json and, beside it, the part of the data that its tasks need (a few
megabytes); recipes that this version refuses, such as those that name a method it has not, are
told and left out. `pack` puts both and the generalists into files of at most 50 MB, for a machine
that takes no more at once; `cat FOLDER/*/study.tar.* | tar x -C DIR` undoes it. `run` needs
neither Prefect nor MLflow, appends each result as it comes with the commit of the code that runs
(`planned` holds the plan's), goes on where it was, and shares teachers and rungs between rows
through HOME. A row that fails becomes a result that says so.
Kernels of several processes on one GPU run side by side only under NVIDIA's MPS
(`nvidia-cuda-mps-control -d` before it): these models fill none by themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.pool import run_pool
from benchmarks.studies.grid import SEEDS, Row, filled
from benchmarks.studies.planning import pack, plan
from benchmarks.studies.provenance import commit, device, machine
from benchmarks.studies.tables import NoRows, check, read

if TYPE_CHECKING:
    from tasks.config import Recipe


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


def _work(row: Row, jobs: Any, *, work: Any, home: Path, generalists: Path) -> None:
    from tasks.config import Recipe

    facts = row.pop("facts")
    row = {**row, "device": device(), **facts}
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
    facts = {
        "study": study.name,
        "commit": commit(),  # of the code that runs, which may not be the one that planned
        "planned": found["commit"],
        "machine": machine(),
    }
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
    one.set_defaults(call=partial(plan, study.name, study.rows))
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
    with one_line(study.name):
        args.call(args)


@contextmanager
def one_line(name: str) -> Iterator[None]:
    """A file of results that is not there ends the command with one line and exit code 2."""
    try:
        yield
    except NoRows as problem:
        print(f"{name}: {problem}", file=sys.stderr)
        raise SystemExit(2) from None


def _show(study: Study, args: argparse.Namespace) -> None:
    rows = read(args.files)
    print(study.table(rows))
    if args.picture and study.picture is not None:
        study.picture([row for row in rows if "failed" not in row], args.picture)
