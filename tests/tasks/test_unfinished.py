"""MLflow runs whose process was killed, or that could not be closed: none stays RUNNING."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest

from tasks import tracking
from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.mlflow_store import pointed
from tasks.processes import host_name, this_process
from tasks.stage import Finished
from tasks.tracking import log_run, tracked
from tasks.unfinished import HOST, PROCESS, close_left_runs
from tests.quiet import QUIET
from tests.tasks.test_promotion import empty_store  # noqa: F401  (a fixture)

pytestmark = QUIET
ROOT = Path(__file__).parents[2]
PLAIN = {"name": "r", "generalist": {"source": "hf:x"}, "task": {"train": "a", "test": "b"}}
KILLED = """
import os, signal
from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.mlflow_store import pointed, steady_client
from tasks.stage import Finished
from tasks import tracking

recipe = Recipe.model_validate(%r)
with tracking.tracked(recipe, {}) as run:
    with pointed():
        client = steady_client()
        experiment = client.get_run(run).info.experiment_id
        artifact = Artifact(stage="teach", path="teach/k", sha256="s", key="k", seconds=1)
        client.log_text = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        tracking._log_stage(client, experiment, run, Finished("t", artifact, False, {}), None)
"""


@pytest.fixture
def client(home: Path, empty_store: Path) -> mlflow.MlflowClient:  # noqa: F811
    shutil.copy(empty_store, home / "mlflow.db")
    uri = f"sqlite:///{home / 'mlflow.db'}"
    return mlflow.MlflowClient(uri, uri)


def recipe() -> Recipe:
    return Recipe.model_validate(PLAIN)


def runs(client: mlflow.MlflowClient) -> list[Any]:
    experiments = [found.experiment_id for found in client.search_experiments()]
    return list(client.search_runs(experiments))


def report() -> dict[str, Any]:
    facts = {name: {"sha256": "0" * 64, "n": 3} for name in ("support", "test")}
    history = [{"x": 1.0}, {"x": 2.0}]
    return {
        "task": facts,
        "verdict": {"status": "pass"},
        "accuracy": {"drop": 0.25, "history": history},
        "seconds": {"total": 1.5},
    }


def stages() -> list[Finished]:
    made = [
        Artifact(
            stage="teach", path="teach/k", sha256="s", key="k", metrics={"loss": 0.5}, seconds=1
        ),
        Artifact(
            stage="prune", path="prune/l", sha256="t", key="l", metrics={"zeros": 3}, seconds=2
        ),
    ]
    return [Finished(each.stage, each, False, {"prune.sparsity": 0.5}) for each in made]


def rows(home: Path, table: str) -> list[tuple[Any, ...]]:
    import sqlite3

    connection = sqlite3.connect(home / "mlflow.db")
    try:
        return sorted(connection.execute(f"select * from {table}"))
    finally:
        connection.close()


def test_a_killed_run_and_its_nested_ones_are_closed_by_the_next(
    client: mlflow.MlflowClient, home: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED % (PLAIN,)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    left = runs(client)
    assert [run.info.status for run in left] == ["RUNNING", "RUNNING"]
    # one of another host, and one that names no process: nobody here can tell
    others = [
        client.create_run("0", tags={HOST: "elsewhere", PROCESS: left[0].data.tags[PROCESS]}),
        client.create_run("0", tags={}),
    ]
    with tracked(recipe(), {}) as own:
        for run in left:
            closed = client.get_run(run.info.run_id)
            assert closed.info.status == "KILLED" and closed.info.end_time is not None
            assert "killed" in closed.data.tags["winnow.error"]
        assert client.get_run(own).info.status == "RUNNING"  # this one's process is alive
    for other in others:
        assert client.get_run(other.info.run_id).info.status == "RUNNING"
    with pointed():
        assert close_left_runs(mlflow.MlflowClient()) == []


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("no"), "FAILED"), (SystemExit(143), "KILLED")]
)
def test_what_ends_a_run_closes_it(
    client: mlflow.MlflowClient, error: BaseException, status: str
) -> None:
    with pytest.raises(type(error)), tracked(recipe(), {}):
        raise error
    (run,) = runs(client)
    assert run.info.status == status and run.data.tags[HOST] == host_name()
    assert run.data.tags[PROCESS] == this_process()


def test_what_could_not_be_closed_is_closed_by_the_next_run_of_the_process(
    client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store fails just while a run fails; the process, such as a worker, lives on."""
    run_it, patch = tracked(recipe(), {}), pytest.MonkeyPatch()
    with patch.context() as inside, pytest.raises(ValueError, match="mine"), run_it:

        def away(*_: Any, **__: Any) -> None:
            raise mlflow.MlflowException("away")

        inside.setattr(mlflow.MlflowClient, "set_tag", away)
        raise ValueError("mine")
    (run,) = runs(client)
    assert run.info.status == "RUNNING"
    with tracked(recipe(), {}):
        again = client.get_run(run.info.run_id)
        assert again.info.status == "FAILED" and again.data.tags["winnow.error"] == "mine"


def test_a_password_in_an_error_is_not_tracked(client: mlflow.MlflowClient) -> None:
    with pytest.raises(ValueError), tracked(recipe(), {}):
        raise ValueError("no answer from postgresql://winnow:s3cr3t-word@db/mlflow")
    (run,) = runs(client)
    assert "no answer" in run.data.tags["winnow.error"]
    assert "s3cr3t-word" not in str(run.data.tags)


@pytest.mark.slow
def test_a_record_broken_off_at_any_call_is_completed_and_nothing_is_there_twice(
    client: mlflow.MlflowClient, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As Prefect's retry does after an outage: the n-th call fails, then all of it again."""
    shown = tmp_path / "card.md"
    shown.write_text("card")
    calls = ("log_batch", "create_run", "log_artifact", "log_text", "set_terminated", "log_inputs")
    counted = 0

    def record(run: str, fail_at: int | None, after: bool) -> int:
        at = 0
        with pytest.MonkeyPatch.context() as patch:
            for name in calls:
                real = getattr(mlflow.MlflowClient, name)

                def failing(*given: Any, _real: Any = real, **named: Any) -> Any:
                    nonlocal at
                    at += 1
                    if at == fail_at and not after:
                        raise RuntimeError("broken off before")
                    result = _real(*given, **named)
                    if at == fail_at:
                        raise RuntimeError("broken off after")
                    return result

                patch.setattr(mlflow.MlflowClient, name, failing)
            facts = report()
            facts["seconds"]["total"] += 0.0 if fail_at else 7.0  # measured anew by the second try
            try:
                log_run(run, recipe(), facts, stages(), [shown])
            except RuntimeError:
                assert fail_at is not None
        return at

    with tracked(recipe(), {}) as run:
        counted = record(run, None, after=False)
    want = {"metrics": 8, "params": len(rows(home, "params")), "runs": 3, "inputs": 2}
    assert want["params"] > 50 and counted >= 12
    for table, count in want.items():
        assert len(rows(home, table)) == count, table
    for fail_at in range(1, counted + 1):
        for after in (False, True):
            before = {table: len(rows(home, table)) for table in want}
            with tracked(recipe(), {}) as run:
                record(run, fail_at, after)
                record(run, None, after)
            for table, count in want.items():
                found = len(rows(home, table)) - before[table]
                assert found == count, (table, fail_at, after)
            children = client.search_runs(
                [client.get_run(run).info.experiment_id], f"tags.`mlflow.parentRunId` = '{run}'"
            )
            assert {child.info.status for child in children} == {"FINISHED"}
            assert sorted(child.info.run_name for child in children) == ["prune", "teach"]
            names = [path.path for path in client.list_artifacts(run)]
            assert names == ["card.md"]
    print(f"broken off before and after each of {counted} calls: complete, nothing twice")
    assert tracking.run_url("1", "2").startswith("http://127.0.0.1")
