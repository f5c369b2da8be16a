"""What one run asks of the servers, measured: requests, their cost in processor time, bytes.

    python benchmarks/scale_measure.py --recipe recipes/digits.yaml --out measured.json

starts a real Prefect server and a real MLflow server, on SQLite and, where PostgreSQL is installed,
on that; runs the recipe against them; counts every request; then sends the commonest ones again,
one at a time and from several clients at once. Costs are processor seconds of
the server and its database, so that a busy host changes them little; wall times are told beside
them. `benchmarks/scale_simulation.py` plans with the result.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.local_servers import database_server, postgres_programs  # noqa: E402
from benchmarks.scale_servers import Counted, clean, mlflow_server, prefect_server  # noqa: E402


def run_once(recipe: str, changes: list[str], servers: dict[str, Counted], home: Path) -> Path:
    """One `winnow specialize` against the servers; returns its folder."""
    command = [sys.executable, "-m", "flows.cli", "specialize", recipe, "--out", str(home / "out")]
    for change in changes:
        command += ["--set", change]
    environment = {
        **clean(),
        "WINNOW_HOME": str(home / "home"),
        "PREFECT_API_URL": servers["prefect"].url,
        "MLFLOW_TRACKING_URI": servers["mlflow"].url,
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, check=False)
    if done.returncode not in (0, 3, 4):
        raise RuntimeError(f"the run ended with {done.returncode}: {done.stderr.decode()[-2000:]}")
    return home / "out"


def what_a_run_asks(recipe: str, changes: list[str], servers: dict[str, Counted]) -> dict[str, Any]:
    """Requests, processor seconds and bytes of one run, first made and then reused."""
    with tempfile.TemporaryDirectory(prefix="winnow-scale-") as scratch:
        idle = {key: each.idle() for key, each in servers.items()}
        found: dict[str, Any] = {"idle": {key: round(rate, 5) for key, rate in idle.items()}}
        for name in ("first", "reused"):
            begun = time.monotonic()
            before = {key: (each.requests(), each.cpu_seconds()) for key, each in servers.items()}
            out = run_once(recipe, changes, servers, Path(scratch))
            time.sleep(3)  # events and logs are sent a moment later
            wall = time.monotonic() - begun
            found[name] = {
                key: {
                    "requests": sum((each.requests() - before[key][0]).values()),
                    # a server's own loops run whether or not there is a run
                    "cpu_s": round(each.cpu_seconds() - before[key][1] - idle[key] * wall, 3),
                    "kinds": dict((each.requests() - before[key][0]).most_common(12)),
                }
                for key, each in servers.items()
            }
        report = json.loads((out / "report.json").read_text())
        found["seconds"] = report["seconds"]
        home = Path(scratch) / "home"
        found["store_bytes"] = _bytes_below(home / "store")
        found["out_bytes"] = _bytes_below(out)
        artifacts = servers["mlflow"].counted.parent / "artifacts"
        found["mlflow_artifact_bytes"] = _bytes_below(artifacts) // 2  # of the two runs
        return found


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def post(url: str, body: Any) -> Any:
    """One request, answered or raised; a server that is too busy is asked again, as clients do."""
    for pause in (0.5, 1.0, 2.0, 4.0, None):
        request = urllib.request.Request(
            url, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as problem:
            if problem.code not in (429, 503) or pause is None:
                raise
            time.sleep(pause)
    return None


def prefect_writer(server: Counted) -> Callable[[], None]:
    """What a client does most often: report a task run's new state."""
    flow = post(f"{server.url}/flows/", {"name": "load"})["id"]
    run = post(f"{server.url}/flow_runs/", {"flow_id": flow, "state": {"type": "RUNNING"}})["id"]

    def write() -> None:
        now = datetime.now(UTC).isoformat()
        events = [
            {
                "occurred": now, "id": str(uuid.uuid4()), "event": "winnow.load",
                "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"},
                "payload": {},
            }
        ]  # fmt: skip
        body = {"flow_run_id": run, "task_key": "t", "dynamic_key": uuid.uuid4().hex}
        post(f"{server.url}/task_runs/", {**body, "state": {"type": "RUNNING"}})
        post(f"{server.url}/events", events)

    return write


def mlflow_writer(server: Counted) -> Callable[[], None]:
    """What a run does most often: log a batch of metrics."""
    api = f"{server.url}/api/2.0/mlflow"
    name = uuid.uuid4().hex
    experiment = post(f"{api}/experiments/create", {"name": name})["experiment_id"]
    run = post(f"{api}/runs/create", {"experiment_id": experiment})["run"]["info"]["run_id"]

    def write() -> None:
        stamp = int(1000 * time.time())
        metrics = [
            {"key": f"m{at}", "value": at, "timestamp": stamp, "step": 0} for at in range(10)
        ]
        post(f"{api}/runs/log-batch", {"run_id": run, "metrics": metrics})

    return write


def load(
    server: Counted, writer: Callable[[Counted], Callable[[], None]], clients: int, seconds: float
) -> dict[str, float]:
    """Closed loop: so many clients, each with one request at a time and no pause.

    Returns:
        requests a second, processor seconds a request, share of one processor in use, failures.
    """
    writers = [writer(server) for _ in range(clients)]
    for write in writers:
        write()  # connections and tables are warm
    done, failed = [0] * clients, [0] * clients
    begun, cpu, requests = time.monotonic(), server.cpu_seconds(), sum(server.requests().values())
    end = begun + seconds

    def loop(at: int) -> None:
        while time.monotonic() < end:
            try:
                writers[at]()
                done[at] += 1
            except (urllib.error.URLError, OSError):
                failed[at] += 1

    threads = [threading.Thread(target=loop, args=(at,)) for at in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.monotonic() - begun
    used = server.cpu_seconds() - cpu
    made = max(1, sum(server.requests().values()) - requests)
    return {
        "clients": clients,
        "per_s": round(made / wall, 2),
        "cpu_s": round(used / made, 5),
        "busy": round(used / wall, 3),
        "failed": sum(failed),
    }


def scheduler_seconds(tasks: int = 2000) -> float:
    """Processor seconds that Dask takes a task: its scheduler, and all that is beside it here."""
    from distributed import Client

    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with Client(processes=False, **options) as client:
        client.gather(client.map(_nothing, range(10), pure=False))
        begun = time.process_time()
        client.gather(client.map(_nothing, range(tasks), pure=False))
        return (time.process_time() - begun) / tasks


def _nothing(at: int) -> int:
    return at


def measured(recipe: str, changes: list[str], seconds: float, clients: list[int]) -> dict[str, Any]:
    """Everything, by database."""
    found: dict[str, Any] = {"recipe": recipe, "changes": changes, "cores": os.cpu_count()}
    found["scheduler_s"] = scheduler_seconds()
    with tempfile.TemporaryDirectory(prefix="winnow-scale-") as scratch:
        folder = Path(scratch)
        folder.chmod(0o755)
        found["sqlite"] = _on(
            folder / "sqlite",
            (f"sqlite+aiosqlite:///{folder}/prefect.db", f"sqlite:///{folder}/mlflow.db", None),
            (recipe, changes, seconds, clients),
        )
        found["postgres"] = None
        if postgres_programs() is None:
            print("PostgreSQL is not installed: measured on SQLite alone", file=sys.stderr)
            return found
        own = folder / "postgres"
        with database_server(own, ("prefect", "mlflow"), careful=True) as databases:
            places = (
                databases["prefect"].replace("postgresql://", "postgresql+asyncpg://"),
                databases["mlflow"],
                psutil.Process(int((own / "data" / "postmaster.pid").read_text().split()[0])),
            )
            found["postgres"] = _on(
                folder / "on-postgres", places, (recipe, changes, seconds, clients)
            )
    return found


def _on(
    folder: Path,
    places: tuple[str, str, psutil.Process | None],
    wanted: tuple[str, list[str], float, list[int]],
) -> dict[str, Any]:
    recipe, changes, seconds, clients = wanted
    with (
        prefect_server(folder / "prefect", places[0], places[2]) as prefect,
        mlflow_server(folder / "mlflow", places[1], places[2]) as mlflow,
    ):
        servers = {"prefect": prefect, "mlflow": mlflow}
        found: dict[str, Any] = {"run": what_a_run_asks(recipe, changes, servers), "load": {}}
        for name, writer in (("prefect", prefect_writer), ("mlflow", mlflow_writer)):
            found["load"][name] = [load(servers[name], writer, n, seconds) for n in clients]
            print(json.dumps({name: found["load"][name]}), file=sys.stderr)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", default="recipes/digits.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--seconds", type=float, default=15.0, help="of load, a number of clients")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = measured(options.recipe, options.set, options.seconds, options.clients)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
