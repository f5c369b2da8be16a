"""Servers whose requests and processor seconds are counted, for `scale_measure.py`."""

from __future__ import annotations

import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from benchmarks.local_servers import Server, free_port

ROOT = Path(__file__).resolve().parent.parent
_START_SECONDS = 240.0
_REQUEST = re.compile(r'"(GET|POST|PUT|PATCH|DELETE) (\S+) HTTP')
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|\b[0-9a-f]{32}\b|(?<==)[^&]+")


class Counted(Server):
    """A server with the file that its requests are in, and its database's process."""

    url = ""
    counted = Path()
    database: psutil.Process | None = None

    def cpu_seconds(self) -> float:
        """Processor time that it, its children and its database have used so far."""
        assert self.process is not None
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

    def settle(self, most: float = 180.0) -> None:
        """Wait until it idles: MLflow's answers long before all of its processes have started.

        Raises:
            RuntimeError: it is still busy after so many seconds.
        """
        end, quiet = time.monotonic() + most, 0
        while quiet < 3:
            before = self.cpu_seconds()
            time.sleep(2)
            quiet = quiet + 1 if self.cpu_seconds() - before < 0.1 else 0
            if time.monotonic() > end:
                raise RuntimeError(f"{self.health}: still busy after {most:.0f} s")

    def idle(self, seconds: float = 20.0) -> float:
        """Processor seconds a second that it takes while nobody asks: its own loops."""
        before, begun = self.cpu_seconds(), time.monotonic()
        time.sleep(seconds)
        return (self.cpu_seconds() - before) / (time.monotonic() - begun)

    def requests(self) -> Counter[str]:
        """How often each kind of request was made, ids left out, health checks too."""
        found: Counter[str] = Counter()
        for method, path in _REQUEST.findall(self.counted.read_text(errors="replace")):
            if "/health" not in path and "/version" not in path:
                found[f"{method} {_ID.sub('*', path.partition('?')[0])}"] += 1
        return found


def clean() -> dict[str, str]:
    """This process's environment without servers of anybody's."""
    left_out = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "WINNOW_HOME", "PYTHONPATH")
    return {key: value for key, value in os.environ.items() if key not in left_out}


@contextmanager
def prefect_server(folder: Path, database: str, own: psutil.Process | None) -> Iterator[Counted]:
    """A Prefect server whose requests are counted."""
    command = ["uvicorn", "--app-dir", str(ROOT / "benchmarks"), "--factory"]
    command += ["scale_counted:create_app", "--log-level", "error"]
    environment = {
        "PREFECT_HOME": str(folder),
        "PREFECT_API_DATABASE_CONNECTION_URL": database,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_FINAL": "1",
        "COUNTED": str(folder / "requests.log"),
    }
    with _served(folder, command, environment, "/api/health", own) as server:
        server.url, server.counted = f"{server.url}/api", folder / "requests.log"
        yield server


@contextmanager
def mlflow_server(
    folder: Path, database: str, own: psutil.Process | None, workers: int = 1
) -> Iterator[Counted]:
    """An MLflow server that also serves artifacts."""
    command = ["mlflow", "server", "--backend-store-uri", database, "--workers", str(workers)]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with _served(folder, command, {"OMP_NUM_THREADS": "1"}, "/health", own) as server:
        yield server


@contextmanager
def _served(
    folder: Path,
    command: list[str],
    environment: Mapping[str, str],
    health: str,
    own: psutil.Process | None,
) -> Iterator[Counted]:
    folder.mkdir(parents=True, exist_ok=True)
    url = f"http://127.0.0.1:{(port := free_port())}"
    # ends with this process, also where that is killed
    watched = [sys.executable, "-P", str(ROOT / "tasks" / "watched.py"), *command]
    log = folder / "server.log"
    server = Counted(
        [*watched, "--host", "127.0.0.1", "--port", str(port)], url + health, log, environment
    )
    server.url, server.counted, server.database = url, log, own
    server.start(held=True)
    try:
        server.wait(_START_SECONDS)
        server.settle()
        yield server
    finally:
        server.stop()
