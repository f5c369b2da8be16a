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
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
_POSTGRES = Path("/usr/lib/postgresql")
_START_SECONDS = 240.0
_REQUEST = re.compile(r'"(GET|POST|PUT|PATCH|DELETE) (\S+) HTTP')
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|\b[0-9a-f]{32}\b|(?<==)[^&]+")


@dataclass
class Server:
    """A server that was started here: where it answers, its requests, its processes."""

    name: str
    url: str
    counted: Path
    process: subprocess.Popen[bytes]
    database: psutil.Process | None

    def cpu_seconds(self) -> float:
        """Processor time that it, its children and its database have used so far."""
        total = 0.0
        for top in (psutil.Process(self.process.pid), self.database):
            for each in [top, *top.children(recursive=True)] if top else ():
                with suppress(psutil.Error):
                    used = each.cpu_times()
                    total += used.user + used.system
        if self.database is not None:  # its own processes end with their connections
            with suppress(psutil.Error):
                gone = self.database.cpu_times()
                total += gone.children_user + gone.children_system
        return total

    def requests(self) -> Counter[str]:
        """How often each kind of request was made, ids left out, health checks too."""
        found: Counter[str] = Counter()
        for method, path in _REQUEST.findall(self.counted.read_text(errors="replace")):
            if "/health" not in path and "/version" not in path:
                found[f"{method} {_ID.sub('*', path.partition('?')[0])}"] += 1
        return found


@contextmanager
def postgres(folder: Path) -> Iterator[tuple[Callable[[str], str], psutil.Process]]:
    """A PostgreSQL of our own on a free port; gives a function from a name to a database's URL."""
    found = sorted(_POSTGRES.glob("*/bin/initdb"))
    if not found:
        raise FileNotFoundError("PostgreSQL is not installed")
    binaries, data, port = found[-1].parent, folder / "data", _free_port()
    user = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
    if user:
        shutil.chown(folder, **user)
    plain: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL, **user}
    subprocess.run(
        [binaries / "initdb", "-D", data, "-U", "winnow", "-A", "trust", "-E", "UTF8"],
        check=True, **plain,
    )  # fmt: skip
    options = [
        "-c",
        "listen_addresses=127.0.0.1",
        "-c",
        f"port={port}",
        "-c",
        "max_connections=300",
    ]
    options += ["-c", f"unix_socket_directories={folder}"]
    server = subprocess.Popen(
        [binaries / "postgres", "-D", data, *options], stderr=subprocess.DEVNULL, **plain
    )
    try:
        _wait(lambda: _listens(port), server, "PostgreSQL")

        def address(name: str) -> str:
            for _ in range(20):
                place = ["-h", "127.0.0.1", "-p", str(port), "-U", "winnow"]
                done = subprocess.run(
                    [binaries / "createdb", *place, name],
                    capture_output=True, text=True, check=False, cwd=folder,
                )  # fmt: skip
                if done.returncode == 0:
                    return f"winnow@127.0.0.1:{port}/{name}"
                time.sleep(0.5)
            raise RuntimeError(done.stderr)

        yield address, psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait(30)


@contextmanager
def prefect_server(folder: Path, database: str, own: psutil.Process | None) -> Iterator[Server]:
    """A Prefect server whose requests are counted."""
    command = ["-m", "uvicorn", "--app-dir", str(ROOT / "benchmarks"), "--factory"]
    command += ["scale_counted:create_app", "--log-level", "error"]
    environment = {
        "PREFECT_HOME": str(folder),
        "PREFECT_API_DATABASE_CONNECTION_URL": database,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_FINAL": "1",
        "COUNTED": str(folder / "requests.log"),
    }
    with _served("prefect", folder, command, environment, "/api/health", own) as server:
        server.url, server.counted = f"{server.url}/api", folder / "requests.log"
        yield server


@contextmanager
def mlflow_server(
    folder: Path, database: str, own: psutil.Process | None, workers: int = 1
) -> Iterator[Server]:
    """An MLflow server that also serves artifacts."""
    command = ["-m", "mlflow", "server", "--backend-store-uri", database, "--workers", str(workers)]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with _served("mlflow", folder, command, {"OMP_NUM_THREADS": "1"}, "/health", own) as server:
        yield server


@contextmanager
def _served(
    name: str,
    folder: Path,
    command: list[str],
    environment: Mapping[str, str],
    health: str,
    own: psutil.Process | None,
) -> Iterator[Server]:
    folder.mkdir(parents=True, exist_ok=True)
    port, log = _free_port(), folder / f"{name}.log"
    command = [sys.executable, *command, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, cwd=folder, start_new_session=True,
            env={**_clean(), **environment},
        )  # fmt: skip
    server = Server(name, f"http://127.0.0.1:{port}", log, process, own)
    try:
        _wait(lambda: _answers(server.url + health), process, f"{name} ({log})")
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)


def _clean() -> dict[str, str]:
    """This process's environment without servers of anybody's."""
    left_out = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "WINNOW_HOME", "PYTHONPATH")
    return {key: value for key, value in os.environ.items() if key not in left_out}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _wait(ready: Callable[[], bool], process: subprocess.Popen[bytes], name: str) -> None:
    end = time.monotonic() + _START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{name} does not start")
        time.sleep(0.2)


def run_once(recipe: str, changes: list[str], servers: dict[str, Server], home: Path) -> Path:
    """One `winnow specialize` against the servers; returns its folder."""
    command = [sys.executable, "-m", "flows.cli", "specialize", recipe, "--out", str(home / "out")]
    for change in changes:
        command += ["--set", change]
    environment = {
        **_clean(),
        "WINNOW_HOME": str(home / "home"),
        "PREFECT_API_URL": servers["prefect"].url,
        "MLFLOW_TRACKING_URI": servers["mlflow"].url,
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, check=False)
    if done.returncode not in (0, 3, 4):
        raise RuntimeError(f"the run ended with {done.returncode}: {done.stderr.decode()[-2000:]}")
    return home / "out"


def what_a_run_asks(recipe: str, changes: list[str], servers: dict[str, Server]) -> dict[str, Any]:
    """Requests, processor seconds and bytes of one run, first made and then reused."""
    with tempfile.TemporaryDirectory(prefix="winnow-scale-") as scratch:
        found: dict[str, Any] = {}
        for name in ("first", "reused"):
            before = {key: (each.requests(), each.cpu_seconds()) for key, each in servers.items()}
            out = run_once(recipe, changes, servers, Path(scratch))
            time.sleep(3)  # events and logs are sent a moment later
            found[name] = {
                key: {
                    "requests": sum((each.requests() - before[key][0]).values()),
                    "cpu_s": round(each.cpu_seconds() - before[key][1], 3),
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


def prefect_writer(server: Server) -> Callable[[], None]:
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


def mlflow_writer(server: Server) -> Callable[[], None]:
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
    server: Server, writer: Callable[[Server], Callable[[], None]], clients: int, seconds: float
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
        try:
            own = folder / "postgres"
            own.mkdir()
            with postgres(own) as (address, process):
                places = (
                    f"postgresql+asyncpg://{address('prefect')}",
                    f"postgresql://{address('mlflow')}",
                    process,
                )
                found["postgres"] = _on(
                    folder / "on-postgres", places, (recipe, changes, seconds, clients)
                )
        except FileNotFoundError as problem:
            found["postgres"] = None
            print(f"{problem}: measured on SQLite alone", file=sys.stderr)
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
