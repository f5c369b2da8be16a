"""The index of finished runs, and of those under way: what `winnow gc` must keep.

A finished run is one small file, `<home>/runs/<id>.json`, so that knowing what the last runs need
takes no server. A run under way holds a lock on a file in `<home>/runs/.live/`; the kernel frees it
when the process dies, however it dies.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.artifacts import Artifact, write_atomically
from tasks.home import home
from tasks.locks import if_free, locked

_NAME = re.compile(r"[^A-Za-z0-9_-]+")


class Run(BaseModel):
    """One entry of the index.

    Attributes:
        id: the flow run's id, or one made up where no flow ran.
        flow: such as "specialize".
        recipe: its name.
        ended: ISO time, UTC.
        artifacts: stage, key and sha256 of everything that the run made or reused.
        model: "name/version" that it registered or found registered.
        mlflow_run: id of its MLflow run; empty where it has none.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    flow: str
    recipe: str
    ended: datetime
    artifacts: list[tuple[str, str, str]]
    model: str | None = None
    mlflow_run: str = ""


def runs_folder() -> Path:
    """The folder of the index."""
    return home() / "runs"


def note_run(
    flow: str,
    recipe: str,
    artifacts: Iterable[Artifact],
    *,
    flow_run: str = "",
    mlflow_run: str = "",
    model: str | None = None,
    ended: datetime | None = None,
) -> Path:
    """Write what a run needs of the store into the index; returns the entry's file.

    Noting the same run again replaces its entry. Runs that share a flow run, such as the members
    of a fleet, get an entry each.

    Args:
        flow: such as "specialize".
        recipe: its name.
        artifacts: everything that the run made or reused.
        flow_run: the flow run's id, where there is one.
        mlflow_run: id of the MLflow run, where there is one.
        model: "name/version" that the run registered or found registered.
        ended: when; left out, now.
    """
    folder = runs_folder()
    folder.mkdir(parents=True, exist_ok=True)
    name = _NAME.sub("-", flow_run or mlflow_run or str(uuid.uuid4()))
    known = _read(folder / f"{name}.json")
    if known is not None and mlflow_run and known.mlflow_run != mlflow_run:
        name = f"{name}-{_NAME.sub('-', mlflow_run)[:12]}"
    listed = sorted({(each.stage, each.key, each.sha256) for each in artifacts})
    run = Run(
        id=name,
        flow=flow,
        recipe=recipe,
        ended=ended or datetime.now(UTC),
        artifacts=listed,
        model=model,
        mlflow_run=mlflow_run,
    )
    path = folder / f"{name}.json"
    write_atomically(path, (run.model_dump_json(indent=1) + "\n").encode())
    return path


def noted_runs() -> list[Run]:
    """The entries of the index, the latest first; damaged ones are left out."""
    found = (_read(path) for path in sorted(runs_folder().glob("*.json")))
    return sorted((run for run in found if run is not None), key=lambda run: run.ended)[::-1]


def damaged_entries() -> list[Path]:
    """Entries that cannot be read: nothing is known of what they need."""
    return [path for path in sorted(runs_folder().glob("*.json")) if _read(path) is None]


@contextmanager
def under_way() -> Iterator[None]:
    """Inside the block this run is told to be alive: gc keeps what was used since its start."""
    folder = runs_folder() / ".live"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / str(uuid.uuid4())):
        yield


def oldest_under_way() -> float | None:
    """When the oldest run that is under way began, seconds since the epoch; None: no run is.

    What dead processes left is removed.
    """
    starts = []
    for path in (runs_folder() / ".live").glob("*"):
        try:
            started = path.stat().st_mtime
        except FileNotFoundError:
            continue
        with if_free(path) as free:
            if not free:
                starts.append(started)
    return min(starts, default=None)


def _read(path: Path) -> Run | None:
    try:
        return Run.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, ValidationError):
        return None
