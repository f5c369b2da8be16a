"""A killed run leaves no server and no flow run that is Running for ever: a real Prefect server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

RUN = """
import sys, time
from prefect import flow, task
from tasks.embedded import _server, embedded_prefect
import tasks.embedded

@task
def work():
    print("working", tasks.embedded._server[0].pid, flush=True)
    sys.stdin.readline()

@flow(name=sys.argv[1])
def running():
    work()

with embedded_prefect():
    running()
"""


@contextmanager
def running(name: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process in the middle of a flow, and the process of its embedded server."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", RUN, name],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        told = process.stdout.readline().split()
        assert told[0] == "working"
        try:
            yield process, int(told[1])
        finally:
            if process.poll() is None:
                process.communicate("go on\n", timeout=60)


def ended(pid: int, within: float = 30.0) -> bool:
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


def test_killed_flow_runs_are_marked_and_living_ones_left(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import FlowRunSort, TaskRunSort

    from tasks import embedded
    from tasks.embedded import embedded_prefect

    # that of an earlier test of this process keeps another home
    monkeypatch.setattr(embedded, "_server", None)
    with running("dead") as (process, server):
        time.sleep(5)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert ended(server), "the embedded server outlives its killed run"
    left = list((home / "prefect" / "processes").iterdir())
    assert len(left) == 1
    with running("alive"), embedded_prefect(), get_client(sync_client=True) as client:
        runs = client.read_flow_runs(sort=FlowRunSort.ID_DESC, limit=10)
        flows = {client.read_flow(run.flow_id).name: run for run in runs}
        tasks = client.read_task_runs(sort=TaskRunSort.ID_DESC, limit=10)
        inside = {run.flow_run_id: run for run in tasks}
        assert flows["dead"].state_type == "CRASHED"
        assert flows["dead"].state.message == "its process was killed"
        assert flows["alive"].state_type == "RUNNING"
        # the server writes task runs down some seconds late: a kill may come before it
        recorded = inside.get(flows["dead"].id)
        assert recorded is None or recorded.state_type == "CRASHED"
    assert list((home / "prefect" / "processes").iterdir()) == []
