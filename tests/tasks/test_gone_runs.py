"""Flow runs whose process is gone, on a real server with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.states import Running

from tasks.embedded import embedded_prefect
from tasks.gone_runs import mark_gone_runs


@flow(name="sleeper")
def sleeper() -> None:
    """Nothing: its runs are made by hand."""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WINNOW_HOME", str(tmp_path_factory.mktemp("server")))
        with embedded_prefect(), get_client(sync_client=True) as found:
            found.create_work_pool(WorkPoolCreate(name="pool", type="process"))
            yield found


def begun(client: Any, number: str | None) -> Any:
    """A flow run that a worker has begun in the process of this number."""
    flow_id = client.create_flow(sleeper)
    deployment = client.create_deployment(flow_id, "sleeper", work_pool_name="pool")
    run = client.create_flow_run_from_deployment(deployment)
    client.set_flow_run_state(run.id, Running(), force=True)
    if number is not None:
        client.update_flow_run(run.id, infrastructure_pid=number)
    return client.read_flow_run(run.id)


def test_only_what_no_process_executes_is_marked(client: Any) -> None:
    api = str(client.api_url).rstrip("/")
    gone, unknown, alive = begun(client, "4194305"), begun(client, None), begun(client, "1")
    process = subprocess.Popen(
        [sys.executable, "-c", "print(1, flush=True); import time; time.sleep(600)"],
        env={**os.environ, "PREFECT__FLOW_RUN_ID": str(alive.id)},
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None and process.stdout.readline()
        assert mark_gone_runs(api, "pool") == [gone.name]
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
    states = {run.name: client.read_flow_run(run.id).state for run in (gone, unknown, alive)}
    assert states[gone.name].type == "CRASHED" and "is gone" in states[gone.name].message
    assert states[unknown.name].type == states[alive.name].type == "RUNNING"
    # a worker of another host served the pool: what runs there cannot be seen from here
    client.send_worker_heartbeat("pool", "another-host")
    assert mark_gone_runs(api, "pool") == []
    assert client.read_flow_run(alive.id).state.type == "RUNNING"
