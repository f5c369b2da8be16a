"""Prefect's and MLflow's databases, kept small by their own means."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from prefect.server.database import provide_database_interface
from prefect.server.services import db_vacuum
from prefect.settings import get_current_settings, temporary_settings

from tasks.errors import UserError
from tasks.home import embedded_tracking_uri, home, prefect_database, prefect_home, tracking_uri
from tasks.secrets import redacted

_LEAST_SECONDS = 3601.0  # Prefect's own lower bound of an hour


def clean_databases(older_than: float, dry_run: bool = False) -> Iterator[str]:
    """Let both clean up; yields what each did, a line each.

    Prefect's own vacuum removes finished flow runs, with their logs, task runs and events; MLflow's
    `mlflow gc` what was deleted there. MLflow's runs stay, as the record that they are.

    Args:
        older_than: seconds since the end of the flow runs that go.
    """
    yield from _prefect(max(older_than, _LEAST_SECONDS), dry_run)
    yield from _mlflow(older_than, dry_run)


def _prefect(older_than: float, dry_run: bool) -> Iterator[str]:
    address = os.environ.get("PREFECT_API_DATABASE_CONNECTION_URL")
    if address is None and get_current_settings().api.url is not None:
        yield (
            "Prefect: PREFECT_API_URL names a server, which keeps its own database small where it "
            "runs with PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED=events,flow_runs (and "
            "..._DB_VACUUM_RETENTION_PERIOD in seconds, 90 days if left out)"
        )
        return
    address = address or prefect_database()
    path = _file(address)
    if path is not None and not path.exists():
        yield f"Prefect: {path} is not there yet"
        return
    if dry_run:
        yield f"Prefect: would vacuum {redacted(address)}"
        return
    settings = {
        "home": prefect_home(),
        "server.database.connection_url": address,
        "server.services.db_vacuum.retention_period": timedelta(seconds=older_than),
    }
    before = _bytes(path)
    with temporary_settings(settings):
        asyncio.run(_vacuum())
    _compact(path)
    yield f"Prefect: {redacted(address)}{_shrunk(before, _bytes(path))}"


async def _vacuum() -> None:
    # the same steps, in the same order, as the server's service takes them
    database = provide_database_interface()
    await db_vacuum.vacuum_old_flow_runs(db=database)
    await db_vacuum.vacuum_orphaned_logs(db=database)
    await db_vacuum.vacuum_orphaned_artifacts(db=database)
    await db_vacuum.vacuum_stale_artifact_collections(db=database)
    await db_vacuum.vacuum_events_with_retention_overrides(db=database)
    await db_vacuum.vacuum_old_events(db=database)
    engine = await database.database_config.engine()
    await engine.dispose()


def _mlflow(older_than: float, dry_run: bool) -> Iterator[str]:
    address = os.environ.get("WINNOW_MLFLOW_DATABASE")
    if address is None and tracking_uri() != embedded_tracking_uri():
        yield (
            "MLflow: MLFLOW_TRACKING_URI names a server; where it runs, `mlflow gc "
            "--backend-store-uri ...` removes what was deleted, with its artifacts"
        )
        return
    address = address or embedded_tracking_uri()
    path = _file(address)
    if path is not None and not path.exists():
        yield f"MLflow: {path} is not there yet"
        return
    if dry_run:
        yield f"MLflow: would run `mlflow gc` on {redacted(address)}"
        return
    before = _bytes(path)
    age = f"{int(older_than // 86400)}d{int(older_than % 86400 // 3600)}h"
    command = [sys.executable, "-m", "mlflow", "gc", "--older-than", age]
    done = subprocess.run(
        [*command, "--backend-store-uri", address],
        env={**os.environ, "MLFLOW_TRACKING_URI": tracking_uri()},
        cwd=home(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"--databases: mlflow gc on {address} failed: {last}")
    _compact(path)
    yield f"MLflow: {redacted(address)}{_shrunk(before, _bytes(path))}"


def _file(address: str) -> Path | None:
    """The file of a SQLite address, None for another database."""
    kind, _, path = address.partition(":///")
    return Path(path) if kind.startswith("sqlite") and path else None


def _bytes(path: Path | None) -> int:
    if path is None:
        return 0
    return sum(x.stat().st_size for x in path.parent.glob(f"{path.name}*") if x.is_file())


def _compact(path: Path | None) -> None:
    """Give the pages that were freed back to the file system; SQLite keeps them otherwise."""
    if path is None:
        return
    connection = sqlite3.connect(path, timeout=60)
    try:
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()


def _shrunk(before: int, after: int) -> str:
    return f": {before / 1e6:,.1f} MB, now {after / 1e6:,.1f} MB" if before else " is cleaned"
