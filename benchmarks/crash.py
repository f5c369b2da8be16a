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
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tasks.digests import MANIFEST
from tasks.layout import QUANTIZED, SERVED
from tasks.partial import FOLDER, Partial
from tasks.recipes import load_recipe

ROOT = Path(__file__).resolve().parent.parent
# chosen by time otherwise
FIXED = ("quantize.route=fused", "quantize.activation=uint8")
TIMED = "verify"  # the last stage, whose artifact holds times
BEFORE, BETWEEN, AFTER = "before the stages", "between stages", "after the stages"
ENDED = (0, 3, 4)


@dataclass
class Run:
    """One process of `winnow specialize`, followed by its lines."""

    process: subprocess.Popen[str]
    began: float
    lines: list[tuple[float, str]] = field(default_factory=list)

    def follow(self) -> None:
        """Read its lines until it ends."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append((time.monotonic() - self.began, line.rstrip("\n")))

    def stage_at(self, moment: float) -> tuple[str, float]:
        """The stage that ran at a moment, or where between them it was, and when it had begun."""
        title, since = BEFORE, 0.0
        for at, line in self.lines:
            if at > moment:
                break
            if line.startswith("  ") and line.endswith(" ..."):
                title, since = line[2:-4], at
            elif line.startswith(("+ ", "= ")):
                title, since = AFTER if line[2:].startswith(f"{TIMED}:") else BETWEEN, at
        return title, since

    def titles(self, mark: str) -> list[str]:
        """Stages told of with a mark: '+' made, '=' reused."""
        return [x[2:].rpartition(": ")[0] for _, x in self.lines if x.startswith(f"{mark} ")]


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


def kept_seconds(home: Path) -> dict[Path, float]:
    """Seconds of work that unfinished stages have kept."""
    return {path: Partial(path).spent for path in home.glob(f"store/*/{FOLDER}*")}


def begin(command: list[str], home: Path) -> Run:
    """Start `winnow` with stores, results and temporary files below `home`."""
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "WINNOW_HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "200",
    }
    for server in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        environment.pop(server, None)
    out = [] if "--out" in command else ["--out", str(home / "out")]
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *command, *out],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    run = Run(process, time.monotonic())
    threading.Thread(target=run.follow, daemon=True).start()
    return run


def finished(run: Run) -> int:
    """Wait for the end; returns the exit code."""
    code = run.process.wait()
    time.sleep(0.2)  # its last lines
    run.lines.append((time.monotonic() - run.began, f"exit {code}"))
    return code


def require(code: int, run: Run) -> None:
    """End where a run that nobody killed did not end well."""
    if code not in ENDED:
        said = "\n".join(line for _, line in run.lines[-15:])
        sys.exit(f"crash: the run without a break ended with {code}:\n{said}")


def killed(run: Run, moment: float, alone: bool) -> list[int]:
    """SIGKILL at a moment; returns the processes that were there, none where it had ended."""
    try:
        run.process.wait(max(0.0, run.began + moment - time.monotonic()))
        return []
    except subprocess.TimeoutExpired:
        pass
    tree = list(below(run.process.pid))
    for pid in [run.process.pid, *([] if alone else tree)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    run.process.wait()
    return [run.process.pid, *tree]


def below(pid: int) -> Iterator[int]:
    """Children of a process, and theirs."""
    with suppress(OSError):
        for listed in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, listed.read_text().split()):
                yield child
                yield from below(child)


def gone(pid: int, patience: float) -> bool:
    """Whether a process has ended within some seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


def artifacts(home: Path) -> list[str]:
    """Stage and digest of every artifact, less what holds times: `verify`, and a form's seconds.

    Not by key: the export that holds seconds is in the keys of what reads it.
    """
    found = []
    for path in sorted(home.glob("store/*/*/artifact.json")):
        stage, folder = path.parent.parent.name, path.parent
        if folder.name.startswith(".") or stage == TIMED:
            continue
        total = hashlib.sha256()
        for file in sorted(x for x in folder.rglob("*") if x.is_file()):
            if file.name not in (QUANTIZED, MANIFEST):
                total.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
        found.append(f"{stage}/{total.hexdigest()}")
    return sorted(found)


def manifests(home: Path) -> dict[str, int]:
    """The file of every manifest: a stage that is made again writes another one.

    Those that call themselves provisional are left out: they are not finished.
    """
    return {
        f"{path.parent.parent.name}/{path.parent.name}": path.stat().st_ino
        for path in home.glob("store/*/*/artifact.json")
        if not path.parent.name.startswith(".")
        and not json.loads(path.read_text())["metrics"].get("provisional")
    }


def served(home: Path) -> str:
    """One digest of all that is served."""
    total = hashlib.sha256()
    for name in SERVED:
        path = home / "out" / name
        total.update(name.encode() + (path.read_bytes() if path.is_file() else b""))
    return total.hexdigest()


def states(home: Path) -> dict[str, int]:
    """Runs that call themselves running, in MLflow and in Prefect; registered versions."""
    return {
        "mlflow_running": counted(home / "mlflow.db", "runs where status = 'RUNNING'"),
        "mlflow_versions": counted(home / "mlflow.db", "model_versions"),
        "prefect_flows": counted(
            home / "prefect" / "prefect.db",
            "flow_run where state_type in ('RUNNING', 'PENDING', 'SCHEDULED')",
        ),
        "prefect_tasks": counted(
            home / "prefect" / "prefect.db",
            "task_run where state_type in ('RUNNING', 'PENDING', 'SCHEDULED')",
        ),
    }


def counted(database: Path, what: str) -> int:
    """Rows of a table; none where the run had not made it yet."""
    if not database.exists():
        return 0
    with closing(sqlite3.connect(database)) as base:
        try:
            return int(base.execute(f"select count(*) from {what}").fetchone()[0])
        except sqlite3.OperationalError:
            return 0


def leftovers(home: Path) -> list[str]:
    """Files and folders that nobody will look at again."""
    found = [path for path in home.glob("store/*/.*")]
    found += (home / "tmp").iterdir()
    found += (home / "out").glob(".*")
    return sorted(path.relative_to(home).as_posix() for path in found)


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
