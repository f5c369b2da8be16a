"""`winnow gc --databases`: Prefect's and MLflow's own means, over real databases."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from prefect import flow, task

from tasks.databases import clean_databases
from tasks.embedded import embedded_prefect
from tasks.mlflow_store import pointed, steady_client

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@task
def step(x: int) -> int:
    return x + 1


@flow(name="counted")
def counted(x: int) -> int:
    return step(x)


def rows(path: Path, query: str) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(path, timeout=60)) as connection:
        found = connection.execute(query).fetchall()
        connection.commit()
        return found


def test_finished_flow_runs_go_when_they_are_old_and_only_then(home: Path) -> None:
    with embedded_prefect():
        counted(1)
        counted(2)
    database = home / "prefect" / "prefect.db"
    first, second = [row[0] for row in rows(database, "select id from flow_run order by created")]
    rows(
        database,
        "update flow_run set end_time = datetime('now', '-40 days'), "
        f"start_time = datetime('now', '-40 days') where id = '{first}'",
    )
    assert "would vacuum" in next(iter(clean_databases(30 * 86400.0, dry_run=True)))
    assert len(rows(database, "select id from flow_run")) == 2
    with pointed():
        client = steady_client()
        gone, stays = (client.create_run("0").info.run_id for _ in range(2))
        client.delete_run(gone)
    told = list(clean_databases(0.0))
    assert rows(database, "select id from flow_run") == [(second,)]
    assert rows(database, "select distinct flow_run_id from task_run") == [(second,)]
    assert rows(home / "mlflow.db", "select run_uuid from runs") == [(stays,)]
    assert len(told) == 2 and all("MB, now" in line for line in told), told


def test_databases_of_servers_are_left_to_them(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:s3cret@127.0.0.1:9")
    told = list(clean_databases(86400.0))
    assert "where it runs, `mlflow gc" in told[1] and "s3cret" not in "".join(told)
