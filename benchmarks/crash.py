"""SIGKILL at random moments, run again: is the end the same, and what was lost?

A recipe is run once without a break. Then runs of it, each in a home of its own, are killed and
begun again until they end: the time from every beginning to the next kill is exponential, so that
any moment of a run, or of its resumption, is as likely as any other. Compared are the digest of
what is served, the digest of every artifact, which finished stages were made again (their
manifests are other files then), the seconds of work that had to be repeated, and what the killed
processes left behind: MLflow and Prefect runs that call themselves running, files, processes.

One kill in two takes the run and its embedded Prefect server, the other the run alone: the server
has to notice. Only what is measured in time may differ between two runs of a recipe, so that the
sizes are planned with a profile made beforehand and the form of the INT8 graphs is fixed; `verify`
holds times, and may say of itself that the host was too busy (it is then made again, as ever).

    python benchmarks/crash.py --kills 50 --workers 2 --work .winnow/crash --out crash.jsonl

Runs that --out already tells of are not made again, and --minutes stops beginning new ones.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.crash_homes import artifacts, kept_seconds, leftovers, manifests, served, states
from benchmarks.crash_processes import (
    AFTER,
    BEFORE,
    BETWEEN,
    ENDED,
    ROOT,
    Run,
    begin,
    finished,
    gone,
    killed,
    require,
)
from tasks.recipes import load_recipe

# chosen by time otherwise
FIXED = ("quantize.route=fused", "quantize.activation=uint8")


def main() -> None:
    """Make the runs that are missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default=str(ROOT / "recipes" / "intents.yaml"))
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="A.B=VALUE")
    parser.add_argument("--kills", type=int, default=50, help="at least; the last runs end as well")
    parser.add_argument("--workers", type=int, default=1, help="runs side by side")
    parser.add_argument(
        "--gap", type=float, help="mean seconds to the next kill; left out: a third of a whole run"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(".winnow/crash"), help="scratch folder")
    parser.add_argument("--out", type=Path, default=Path("crash.jsonl"), help="a line a run")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after these")
    parser.add_argument("--keep", action="store_true", help="keep every run's home")
    asked = parser.parse_args()
    end = time.monotonic() + 60 * asked.minutes
    asked.work, asked.recipe = asked.work.absolute(), str(Path(asked.recipe).absolute())
    asked.work.mkdir(parents=True, exist_ok=True)
    changes = with_profile([*FIXED, *asked.changes], asked.recipe, asked.work)
    command = ["specialize", asked.recipe, *(x for change in changes for x in ("--set", change))]
    whole = reference(command, asked.work)
    rows = [json.loads(x) for x in asked.out.read_text().splitlines()] if asked.out.exists() else []
    known, writing = {row["run"] for row in rows}, threading.Lock()
    waiting = iter(number for number in itertools.count() if number not in known)

    def work() -> None:
        while time.monotonic() < end:
            with writing:
                if sum(len(row["kills"]) for row in rows) >= asked.kills:
                    return
                number = next(waiting)
            row = killed_run(number, command, whole, asked)
            with writing, asked.out.open("a", encoding="utf-8") as stream:
                rows.append(row)
                stream.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)

    with ThreadPoolExecutor(asked.workers) as pool:
        for each in [pool.submit(work) for _ in range(asked.workers)]:
            each.result()
    text = table(rows, whole)
    asked.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def with_profile(changes: list[str], recipe: str, work: Path) -> list[str]:
    """The changes, and a profile where the recipe shrinks: what is measured is measured once."""
    if not load_recipe(recipe, changes).shrinks:
        return changes
    path = work / "profile.json"
    if not path.exists():
        sets = [x for change in changes for x in ("--set", change)]
        run = begin(["profile", recipe, *sets, "--out", str(path)], work / "profile")
        require(finished(run), run)
    return [*changes, f"shrink.profile={path}"]


def reference(command: list[str], work: Path) -> dict[str, Any]:
    """The run without a break: its digests, its seconds; read where it was made before."""
    facts = work / "reference.json"
    if facts.exists():
        found: dict[str, Any] = json.loads(facts.read_text())
        if found["command"] == command:
            return found
    home = work / "reference"
    shutil.rmtree(home, ignore_errors=True)
    run = begin(command, home)
    require(finished(run), run)
    found = {
        "command": command,
        "seconds": run.lines[-1][0],
        "artifacts": artifacts(home),
        "served": served(home),
        "stages": len(run.titles("+")),
        "files_left": leftovers(home),
    }
    facts.write_text(json.dumps(found, indent=1))
    return found


def killed_run(
    number: int, command: list[str], whole: dict[str, Any], asked: argparse.Namespace
) -> dict[str, Any]:
    """Begin, kill and begin again until a run ends; compare its end."""
    chance = random.Random(f"{asked.seed} {number}")
    home, gap = asked.work / f"run-{number}", asked.gap or whole["seconds"] / 3
    shutil.rmtree(home, ignore_errors=True)
    kills: list[dict[str, Any]] = []
    made: list[dict[str, int]] = []
    while True:
        known = kept_seconds(home)
        run = begin(command, home)
        moment, alone = chance.expovariate(1 / gap), (number + len(kills)) % 2 == 1
        tree = killed(run, moment, alone)
        if not tree:
            break
        left = [pid for pid in tree if not gone(pid, patience=20.0)]
        kills.append(lost(run, moment, home, known) | {"alone": alone, "processes_left": len(left)})
        made.append(manifests(home))
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    code, after = finished(run), manifests(home)
    for kill, before in zip(kills, made, strict=True):
        kill["recomputed"] = sorted(name for name, inode in before.items() if after[name] != inode)
    differ = {name.partition("/")[0] for name in set(artifacts(home)) ^ set(whole["artifacts"])}
    row = {
        "run": number,
        "kills": kills,
        "exit": code,
        "equal": served(home) == whole["served"],
        "artifacts_differ": sorted(differ),
        "after": states(home),
        "files_left": sorted(set(leftovers(home)) - set(whole["files_left"])),
    }
    if code not in ENDED:
        row["said"] = [line for _, line in run.lines[-5:]]
    if not asked.keep:
        shutil.rmtree(home, ignore_errors=True)
    return row


def lost(run: Run, moment: float, home: Path, known: dict[Path, float]) -> dict[str, Any]:
    """Where a kill came, and how much of that stage's work nobody had kept."""
    title, since = run.stage_at(moment)
    spent = moment - since if title not in (BEFORE, BETWEEN, AFTER) else 0.0
    # what an earlier beginning of the stage had kept does not count again
    kept = sum(x - known.get(path, 0.0) for path, x in kept_seconds(home).items())
    return {
        "moment": round(moment, 2),
        "stage": title,
        "spent_s": round(spent, 2),
        "kept_s": round(kept, 2),
        "lost_s": round(max(spent - kept, 0.0), 2),
        "finished_before": len(manifests(home)),
        "after_kill": states(home),
    }


def table(runs: list[dict[str, Any]], whole: dict[str, Any]) -> str:
    """Markdown of what was lost, and the counts."""
    rows = [kill | {"run": run} for run in runs for kill in run["kills"]]
    lines = [
        "| killed in | kills | spent there, s | lost, s (mean) | lost, s (most) |",
        "|---|---|---|---|---|",
    ]
    for stage in dict.fromkeys(row["stage"] for row in sorted(rows, key=lambda r: r["moment"])):
        inside = [row for row in rows if row["stage"] == stage]
        gone_s = [row["lost_s"] for row in inside]
        spent = sum(row["spent_s"] for row in inside) / len(inside)
        mean = sum(gone_s) / len(gone_s)
        lines.append(f"| {stage} | {len(inside)} | {spent:.1f} | {mean:.1f} | {max(gone_s):.1f} |")
    n = len(rows)

    def left(what: str) -> tuple[int, int]:
        by_kills = sum(row["after_kill"][what] > 0 for row in rows)
        return by_kills, sum(run["after"][what] for run in runs)

    mlflow, flows = left("mlflow_running"), left("prefect_flows")
    tasks = left("prefect_tasks")
    most = max((len(run["kills"]) for run in runs), default=0)
    lines += [
        "",
        f"The run without a break: {whole['seconds']:.0f} s, {whole['stages']} stages made. "
        f"{n} kills in {len(runs)} runs (at most {most} of one run); "
        f"{sum(row['alone'] for row in rows)} of the run alone, the others of its server too.",
        "",
        f"equal final digest: {sum(row['run']['equal'] for row in rows)} of {n} kills, "
        f"{sum(run['equal'] for run in runs)} of {len(runs)} runs",
        f"every artifact equal: {sum(not run['artifacts_differ'] for run in runs)} of {len(runs)} "
        "runs",
        f"finished stages recomputed: {sum(len(row['recomputed']) for row in rows)}",
        f"seconds lost a kill: {sum(row['lost_s'] for row in rows) / max(n, 1):.1f} on average, "
        f"{max((row['lost_s'] for row in rows), default=0.0):.1f} at most",
        f"kills after which an MLflow run called itself RUNNING: {mlflow[0]}; at the end: "
        f"{mlflow[1]}",
        f"the same of Prefect's flow runs: {flows[0]}; at the end: {flows[1]}; of its task runs: "
        f"{tasks[0]} and {tasks[1]}",
        f"registered versions: {sum(run['after']['mlflow_versions'] for run in runs)} in "
        f"{len(runs)} homes",
        f"processes left: {sum(row['processes_left'] for row in rows)}",
        f"files left: {sum(len(run['files_left']) for run in runs)}",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
