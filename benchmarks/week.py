"""A week in fast forward: hundreds of rechecks, labels that change, and what grows.

    python benchmarks/week.py                              # 500 rechecks, 20 changes, twice
    python benchmarks/week.py --rechecks 40 --changes 2    # a look
    python benchmarks/week.py --of ONE.json OTHER.json     # the page of weeks made apart

The flows are called in this process, one after the other, as a worker would; Prefect's server is a
process of its own with its services, MLflow's store is SQLite. Every change appends sentences to
the task's files and corrects labels; the watch sees it, and what its event would start is run:
`respecialize`, the whole of a specialization. One week runs `winnow gc` every night, the other
never does. Times are of the client and include its waiting for the server; the processor's seconds
beside them do not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tasks  # noqa: F401  (its environment defaults must precede Prefect's import)
from benchmarks.concurrent_runs import tiny_assets
from benchmarks.local_servers import Server, free_port

NAME = "week"
DAYS = 7
ENDS = 25  # rechecks at the start and at the end that are compared
TOPICS = ("ant", "bee", "cat")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rechecks", type=int, default=500)
    parser.add_argument("--changes", type=int, default=20)
    parser.add_argument("--out", type=Path, help="Markdown page to write")
    parser.add_argument("--folder", type=Path, help="where to work; left out, a temporary folder")
    parser.add_argument("--only", choices=("gc", "no-gc"), help="one of the two weeks")
    parser.add_argument("--of", type=Path, nargs="+", help="results of weeks that were made")
    parser.add_argument("--week", choices=("gc", "no-gc"), help=argparse.SUPPRESS)
    return parser.parse_args()


@contextmanager
def prefect_server(folder: Path) -> Iterator[str]:
    """Prefect's server with all of its services; yields its API's address."""
    address = f"http://127.0.0.1:{(port := free_port())}/api"
    server = Server(
        [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)],
        f"{address}/health",
        folder / "prefect.log",
        {
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder}/prefect.db",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        },
    )
    server.start()
    try:
        server.wait(180)
        yield address
    finally:
        server.stop()


def recipe_of(folder: Path) -> dict[str, Any]:
    """A task of three classes and a two-layer BERT: small, and every stage is real."""
    generalist, task = tiny_assets(folder)
    return {
        "name": NAME,
        "generalist": {"source": generalist},
        "task": {**task, "shots": 8},
        "teacher": {"steps": 30, "batch_size": 8, "folds": 2},
        "distill": {"steps": 4, "batch_size": 8, "check_every": 2},
        "prune": {"samples": 24, "sparsity": 0.5},
        "verify": {"max_drop": 0.3, "repeats": 10},
        "limits": {"samples": 0},
        "precision": "float32",
    }


def change_labels(task: Mapping[str, str], number: int) -> None:
    """New sentences in both files, and one label of the test set corrected and put back."""
    for split in ("train", "test"):
        path = Path(task[split])
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        if split == "test":
            at = number % len(rows)
            rows[at]["intent"] = TOPICS[(TOPICS.index(rows[at]["intent"]) + 1) % len(TOPICS)]
        for topic in TOPICS:
            text = f"word{number % 14} {topic}{number % 5} {split} word{(3 * number) % 14}"
            rows.append({"text": f"{text} {topic}{(number + 1) % 5} {number}", "intent": topic})
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def sizes(folder: Path, home: Path) -> dict[str, int]:
    """Bytes by place."""
    places = {
        "store": home / "store",
        "results": home / "results",
        "MLflow's artifacts": home / "mlartifacts",
    }
    found = {name: _bytes(path) for name, path in places.items()}
    found["MLflow's database"] = sum(map(_bytes, home.glob("mlflow.db*")))
    found["Prefect's database"] = sum(map(_bytes, folder.glob("prefect.db*")))
    return found


def _bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def tables(database: Path) -> dict[str, int]:
    """Rows of the largest tables."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as opened:
        names = opened.execute("select name from sqlite_master where type = 'table'")
        rows = {
            name: opened.execute(f'select count(*) from "{name}"').fetchone()[0]
            for (name,) in names.fetchall()
        }
    return dict(sorted(rows.items(), key=lambda row: -row[1])[:6])


def week(folder: Path, rechecks: int, changes: int, collects: bool) -> dict[str, Any]:
    """One week in this process; returns what was measured."""
    home = Path(os.environ["WINNOW_HOME"])
    with prefect_server(folder) as address:
        os.environ["PREFECT_API_URL"] = address
        # these read the settings when they are imported
        from prefect.settings import PREFECT_API_URL, temporary_settings

        from flows.recheck import recheck_flow
        from flows.respecialize import respecialize_flow
        from flows.specialize import specialize_flow
        from flows.watch import watch_flow
        from tasks.config import Recipe
        from tasks.gc import collect, plan
        from tasks.registry import champion_of, versions_of

        plain = recipe_of(folder)
        with temporary_settings({PREFECT_API_URL: address}):
            specialize_flow(Recipe.model_validate(plain), str(folder / "run"))
            days = [{"day": 0, **sizes(folder, home)}]
            took: list[tuple[float, float]] = []
            decisions: dict[str, int] = {}
            events = made = 0
            every, a_day = rechecks // max(changes, 1), rechecks // DAYS
            for at in range(rechecks):
                if changes and at % every == every - 1 and at // every < changes:
                    change_labels(plain["task"], at // every)
                    (seen,) = watch_flow([NAME])
                    events += seen["status"] == "changed"
                    outcome = respecialize_flow(NAME, seen["reason"])
                    made += outcome["action"] != "held"
                wall, cpu = time.perf_counter(), time.process_time()
                (report,) = recheck_flow(NAME)
                took.append((time.perf_counter() - wall, time.process_time() - cpu))
                decisions[report["decision"]] = decisions.get(report["decision"], 0) + 1
                if (at + 1) % a_day == 0 and len(days) <= DAYS:
                    if collects:
                        collect(plan(keep_runs=20, older_than=0.0))
                    days.append({"day": len(days), **sizes(folder, home)})
                    print(f"{'gc' if collects else 'no gc'}: day {len(days) - 1}", flush=True)
            champion = champion_of(NAME)
            return {
                "gc": collects,
                "rechecks": len(took),
                "events": events,
                "specialized": made,
                "versions": len(versions_of(NAME)),
                "champions": len(champion.before) + 1 if champion else 0,
                "decisions": decisions,
                "first": _middle(took[1 : ENDS + 1]),  # the very first imports the rest
                "last": _middle(took[-ENDS:]),
                "days": days,
                "rows": {
                    "MLflow": tables(home / "mlflow.db"),
                    "Prefect": tables(folder / "prefect.db"),
                },
            }


def _middle(took: list[tuple[float, float]]) -> dict[str, float]:
    walls, cpus = zip(*took, strict=True)
    return {"seconds": round(median(walls), 3), "cpu": round(median(cpus), 3)}


def page(found: list[dict[str, Any]], command: str) -> str:
    """The measurements as Markdown."""
    from exports.runtime import host_profile

    host = host_profile()
    told = f"What `{command}` printed on {host['cpu']}, {host['cores']} cores."
    lines = ["# A week in fast forward", "", told, ""]
    lines += [
        "| | changes told | specialized anew | versions | rechecks | hold / act / inconclusive |",
        "|---|---|---|---|---|---|",
    ]
    for each in found:
        d = each["decisions"]
        acts = d.get("respecialize", 0) + d.get("rollback", 0)
        lines.append(
            f"| {_name(each)} | {each['events']} | {each['specialized']} | {each['versions']} "
            f"({each['champions']} champions) | {each['rechecks']} | {d.get('hold', 0)} / {acts} "
            f"/ {d.get('inconclusive', 0)} |"
        )
    lines += ["", f"## Seconds a recheck, medians of the first and the last {ENDS}", ""]
    lines += ["| | first | last | first, processor | last, processor |", "|---|---|---|---|---|"]
    for each in found:
        first, last = each["first"], each["last"]
        lines.append(
            f"| {_name(each)} | {first['seconds']:.2f} | {last['seconds']:.2f} | "
            f"{first['cpu']:.2f} | {last['cpu']:.2f} |"
        )
    for each in found:
        names = [name for name in each["days"][0] if name != "day"]
        lines += ["", f"## Megabytes at the end of each day, {_name(each)}", ""]
        lines += [f"| day | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        lines += [
            f"| {day['day']} | " + " | ".join(f"{day[name] / 1e6:.1f}" for name in names) + " |"
            for day in each["days"]
        ]
        lines += ["", "Rows of the largest tables at the end:", ""]
        lines += [
            f"- {server}: " + ", ".join(f"{name} {count:,}" for name, count in rows.items())
            for server, rows in each["rows"].items()
        ]
    return "\n".join(lines) + "\n"


def _name(each: Mapping[str, Any]) -> str:
    return "`winnow gc` every night" if each["gc"] else "never `winnow gc`"


def main() -> None:
    given = arguments()
    if given.week:  # a process a week: what one imports and caches is not the other's
        result = week(given.folder, given.rechecks, given.changes, given.week == "gc")
        (given.folder / "result.json").write_text(json.dumps(result))
        return
    if given.of:
        found = [json.loads(path.read_text()) for path in given.of]
        files = " ".join(str(path) for path in given.of)
        text = page(found, f"benchmarks/week.py --of {files}")
        print(text)
        if given.out is not None:
            given.out.write_text(text)
        return
    folder = given.folder or Path(tempfile.mkdtemp(prefix="winnow-week-"))
    found = []
    for kind in ("no-gc", "gc"):
        if given.only not in (None, kind):
            continue
        inside = folder / kind
        inside.mkdir(parents=True)
        asked = ["--rechecks", str(given.rechecks), "--changes", str(given.changes)]
        environment = {**os.environ, "WINNOW_HOME": str(inside / "home")}
        for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
            environment.pop(name, None)
        with (inside / "log").open("w") as log:
            subprocess.run(
                [sys.executable, __file__, "--week", kind, "--folder", str(inside), *asked],
                env=environment | {"PREFECT_LOGGING_LEVEL": "ERROR"},
                cwd=inside,
                stdout=log,
                stderr=log,
                check=True,
            )
        found.append(json.loads((inside / "result.json").read_text()))
    command = f"benchmarks/week.py --rechecks {given.rechecks} --changes {given.changes}"
    text = page(found, command)
    print(text)
    if given.out is not None:
        given.out.write_text(text)
    if given.folder is None:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
