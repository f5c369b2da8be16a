"""Flow runs of a worker whose process is gone: after a power cut they would be Running for ever.

A process that ends by itself, or that its worker ends, reports so. What ended with the machine
cannot; the next `winnow up` says it.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import urllib.request
from pathlib import Path
from typing import Any

# what Prefect's worker gives to the process of a flow run
_VARIABLE = b"PREFECT__FLOW_RUN_ID="
_OPEN = ["RUNNING", "PENDING", "CANCELLING"]
_MESSAGE = "Its process is gone: the machine or its worker was stopped."


def mark_gone_runs(api: str, pool: str) -> list[str]:
    """Set the open flow runs of a pool whose processes are gone to Crashed; returns their names.

    Nothing is marked where workers of other hosts have served the pool (their processes cannot be
    seen from here), nor where this host does not show its processes.

    Args:
        api: address of Prefect's API.
    """
    alive = _flow_runs_of_processes()
    workers = _ask(api, f"work_pools/{pool}/workers/filter", {"limit": 200})
    if alive is None or any(worker["name"] != socket.gethostname() for worker in workers):
        return []
    asked = {
        "flow_runs": {"state": {"type": {"any_": _OPEN}}},
        "work_pools": {"name": {"any_": [pool]}},
        "limit": 200,
    }
    marked = []
    for run in _ask(api, "flow_runs/filter", asked):
        if run["infrastructure_pid"] and run["id"] not in alive:
            _mark(api, run["id"])
            marked.append(str(run["name"]))
    return marked


def _mark(api: str, run: str) -> None:
    within = {"parent_flow_run_id": {"any_": [run]}, "state": {"type": {"any_": _OPEN}}}
    for child in _ask(api, "flow_runs/filter", {"flow_runs": within}):
        _mark(api, child["id"])
    tasks = {
        "flow_runs": {"id": {"any_": [run]}},
        "task_runs": {"state": {"type": {"any_": _OPEN}}},
    }
    crashed = {"state": {"type": "CRASHED", "message": _MESSAGE}, "force": True}
    for task in _ask(api, "task_runs/filter", tasks):
        _ask(api, f"task_runs/{task['id']}/set_state", crashed)
    _ask(api, f"flow_runs/{run}/set_state", crashed)


def _flow_runs_of_processes() -> set[str] | None:
    """Ids of the flow runs that processes of this host execute; None where it does not say."""
    found = set()
    processes = [path for path in Path("/proc").glob("[0-9]*")]
    for path in processes:
        try:
            environment = (path / "environ").read_bytes().split(b"\0")
        except OSError:  # another user's, or just gone
            continue
        found |= {
            entry.removeprefix(_VARIABLE).decode("ascii", "replace")
            for entry in environment
            if entry.startswith(_VARIABLE)
        }
    return found if processes else None


def _ask(api: str, path: str, body: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json"}
    auth = os.environ.get("PREFECT_API_AUTH_STRING") or os.environ.get(
        "PREFECT_SERVER_API_AUTH_STRING"
    )
    if auth:
        headers["Authorization"] = "Basic " + base64.b64encode(auth.encode()).decode()
    request = urllib.request.Request(f"{api}/{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)
