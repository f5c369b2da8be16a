"""`winnow gc`: what goes, what stays and why, over a real registry and real locks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import mlflow
import pytest
from typer.testing import CliRunner

from flows.cli import app
from tasks import gc
from tasks.artifacts import Artifact, lock_of, publish, published, workspace
from tasks.digests import MANIFEST
from tasks.errors import RecipeError
from tasks.home import store
from tasks.locks import locked
from tasks.mlflow_store import pointed
from tasks.runs import note_run, under_way
from tests.quiet import QUIET
from tests.tasks.test_promotion import empty_store  # noqa: F401  (a fixture)

pytestmark = QUIET
ROOT = Path(__file__).parents[2]
DAY = 86400.0


def make(key: str, stage: str = "teach", days: float = 10.0, size: int = 1000) -> Artifact:
    """An artifact that was last used some days ago."""
    with workspace(stage) as folder:
        (folder / "weights").write_bytes(key.encode() * size)
        artifact = publish(folder, stage=stage, key=key, metrics={}, seconds=1.0)
    age(artifact.folder / MANIFEST, days)
    return artifact


def age(path: Path, days: float) -> None:
    at = time.time() - days * DAY
    os.utime(path, (at, at))


def noted(days: float, *artifacts: Artifact, **facts: str) -> Path:
    ended = datetime.now(UTC) - timedelta(days=days)
    return note_run("specialize", "r", artifacts, ended=ended, **facts)  # type: ignore[arg-type]


def left() -> set[str]:
    return {path.name for path in store().glob("*/*") if not path.name.startswith(".")}


Registered = Callable[..., str]


@pytest.fixture
def register(home: Path, empty_store: Path) -> Registered:  # noqa: F811
    """A function that registers a version made by a run with nested runs; returns its run id."""
    shutil.copy(empty_store, home / "mlflow.db")

    def call(name: str, *used: Artifact) -> str:
        with pointed():
            client = mlflow.MlflowClient()
            run = client.create_run("0").info.run_id
            for artifact in used:
                tags = {
                    "mlflow.parentRunId": run,
                    "winnow.stage": artifact.stage,
                    "winnow.sha256": artifact.sha256,
                }
                client.create_run("0", tags=tags)
            client.create_registered_model(name)
            client.create_model_version(name, "file:///nowhere", tags={"winnow.run_id": run})
        return run

    return call


def test_what_the_last_runs_the_registry_and_the_day_need_stays(register: Registered) -> None:
    listed, older, index, nested = (make(key) for key in ("listed", "older", "index", "nested"))
    make("today", days=0.5)
    make("nobody's")
    noted(2, listed)
    gone = noted(3, older)
    by_index = register("by-index", index)
    noted(9, index, mlflow_run=by_index, model="by-index/1")
    register("by-nested", nested)
    found = gc.plan(keep_runs=1, older_than=DAY)
    assert {item.path for item in found.going} == {
        store() / "teach" / "nobody's",
        store() / "teach" / "older",
        gone,
    }
    reasons = {why: count for why, count, _ in found.staying}
    assert reasons["registered versions"] == 2 and reasons["used lately"] == 1
    assert left() == {"listed", "older", "index", "nested", "today", "nobody's"}  # only planned
    count, freed = gc.collect(found)
    assert count == 3 and freed >= 1000 * len("nobody's" + "older")
    assert left() == {"listed", "index", "nested", "today"}
    for key in left():
        assert published("teach", key) is not None
    assert gc.plan(keep_runs=1, older_than=DAY).going == []


def test_what_a_run_under_way_or_a_holder_needs_stays_however_young_is_kept(home: Path) -> None:
    make("before", days=10)
    with under_way():
        make("of the run", days=0)
        made = make("being made")
        with locked(lock_of("teach", "being made")):
            found = gc.plan(keep_runs=0, older_than=0)
            assert [item.path.name for item in found.going] == ["before"]
            assert {why for why, *_ in found.staying} == {
                "used lately, or by a run that is under way",
                "being made",
            }
        assert made.intact()
    names = {item.path.name for item in gc.plan(keep_runs=0, older_than=0).going}
    assert names == {"before", "of the run", "being made"}


@pytest.mark.parametrize("name", ["gone", ".making-gone"])
def test_what_another_process_removes_while_it_is_looked_at_is_gone(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make("stays")
    going = make("gone").folder
    going.rename(going.with_name(name))
    going = going.with_name(name)
    scandir, stat = os.scandir, os.stat

    def removed_first(path: Any = ".") -> Any:
        if isinstance(path, str | Path) and Path(path) == going and going.exists():
            shutil.rmtree(going)
        return scandir(path)

    def removed_then(path: Any, **options: Any) -> Any:
        found = stat(path, **options)
        if isinstance(path, str | Path) and Path(path).name == "weights":
            os.unlink(path)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", removed_first)
        gc.plan(keep_runs=0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", removed_then)
        items = gc.plan(keep_runs=0).items
    assert [item.path.name for item in items] == ["stays"] and not going.exists()


def test_what_is_used_or_made_between_plan_and_removal_stays(home: Path) -> None:
    used, held, free = make("used"), make("held"), make("free")
    found = gc.plan(keep_runs=0, older_than=DAY)
    os.utime(used.folder / MANIFEST)
    with locked(lock_of("teach", "held")):
        assert gc.collect(found)[0] == 1
    assert used.intact() and held.intact() and not free.folder.exists()


def test_leftovers_records_and_dead_partials_go(home: Path) -> None:
    kept = make("kept", days=0)
    noted(0, kept)
    folder = store() / "teach"
    for name, days in ((".partial-kept", 0.0), (".partial-gone", 9.0), (".partial-new", 0.1)):
        (folder / name).mkdir()
        (folder / name / "state").write_bytes(b"x" * 100)
        age(folder / name / "state", days)
        age(folder / name, days)
    (folder / ".making-dead").mkdir()
    results = home / "results"
    results.mkdir()
    for name, days in (("kept", 9.0), ("f" * 64, 9.0), ("0" * 32, 0.1)):
        (results / name).write_text("{}")
        age(results / name, days)
    found = gc.plan()
    assert {item.path.name for item in found.going} == {
        ".partial-kept",  # the artifact is there: nobody goes on from it
        ".partial-gone",
        ".making-dead",
        "f" * 64,
    }
    gc.collect(found)
    assert sorted(path.name for path in results.iterdir()) == ["0" * 32, "kept"]
    assert {path.name for path in folder.iterdir()} == {"kept", ".partial-new"}


def test_an_unknown_need_removes_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("a")
    noted(5).write_text("{")
    with pytest.raises(RecipeError, match="is damaged"):
        gc.plan(keep_runs=0, older_than=0)
    shutil.rmtree(home / "runs")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(RecipeError, match="MLFLOW_TRACKING_URI: no server answers"):
        gc.plan(keep_runs=0, older_than=0)
    assert left() == {"a"}


def test_the_command_tells_and_does_and_a_dry_run_only_tells(home: Path) -> None:
    make("a", size=3_000_000)
    told = CliRunner().invoke(app, ["gc", "--dry-run", "--older-than", "1d"])
    assert told.exit_code == 0 and "store/teach/a" in told.stdout and left() == {"a"}
    assert "3.00 MB  to go, 1 in all" in told.stdout
    done = CliRunner().invoke(app, ["gc"])
    assert done.exit_code == 0 and "removed 1 of 1, 3.0 MB" in done.stdout and left() == set()
    for wrong in ("1", "d", "-1d", "1 day", "1e9d"):
        bad = CliRunner().invoke(app, ["gc", f"--older-than={wrong}"])
        assert bad.exit_code == 2
        assert bad.stderr.count("\n") == 1 and "write 90s, 30m, 12h, 1d or 2w" in bad.stderr


KILLED = """
import json, os, shutil, signal, sys
from pathlib import Path

from tasks import gc
from tasks.artifacts import published
from tasks.home import home, store

untouched = sys.argv[1]

def collect(moment=None):
    found, count = gc.plan(keep_runs=0, older_than=3600.0), 0

    def counted(call):
        def stepped(*given, **named):
            nonlocal count
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*given, **named)
        return stepped

    # every step that changes the disk, those inside of shutil.rmtree among them
    if moment is not None:
        for name in ("replace", "unlink", "rmdir"):
            setattr(os, name, counted(getattr(os, name)))
    gc.collect(found)

status, moment = 1, 0
while status:
    moment += 1
    shutil.rmtree(home())
    shutil.copytree(untouched, home())
    child = os.fork()
    if not child:
        collect(moment)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    broken = [
        path.name for path in store().glob("teach/[a-z]*") if published("teach", path.name) is None
    ]
    collect()
    left = sorted(path.name for path in (store() / "teach").iterdir())
    print(json.dumps({"status": status, "broken": broken, "left": left}))
"""


def test_killed_at_any_moment_it_leaves_a_store_that_works(home: Path, tmp_path: Path) -> None:
    for key in ("a", "b"):
        make(key)
    noted(9, make("kept", days=0))
    untouched = tmp_path / "untouched"
    shutil.copytree(home, untouched)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(untouched)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) > 5 and all(row["status"] == signal.SIGKILL for row in rows[:-1])
    for moment, row in enumerate(rows, 1):
        # an artifact is whole, or not there at all; the next gc ends what was begun
        assert row["broken"] == [] and row["left"] == ["kept"], (moment, row)
    print(f"killed at each of {len(rows) - 1} moments: every artifact whole or gone")
