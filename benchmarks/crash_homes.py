"""What a killed run leaves in its home: artifacts, their digests, runs that seem to run."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path

from tasks.digests import MANIFEST
from tasks.layout import QUANTIZED, SERVED
from tasks.partial import FOLDER, Partial

TIMED = "verify"  # the last stage, whose artifact holds times


def kept_seconds(home: Path) -> dict[Path, float]:
    """Seconds of work that unfinished stages have kept."""
    return {path: Partial(path).spent for path in home.glob(f"store/*/{FOLDER}*")}


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
